"""Files are written whole, and a place where none can be made is found out."""

import os
from pathlib import Path

import pytest

from vllm_dare.pool.files import check_writable, replace_text


def test_a_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    replace_text(path, "näw")
    assert path.read_text(encoding="utf-8") == "näw"
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_which_nobody_can_make_a_file() -> None:
    assert os.access("/proc", os.R_OK)
    with pytest.raises(OSError, match="/proc"):
        check_writable(Path("/proc"))
