import resource
from pathlib import Path

import numpy as np
import pytest

from vllm_dare.pool.mapping import map_file, map_in


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _mapped(path: Path) -> np.ndarray:
    path.write_bytes(np.arange(2_000_000, dtype=np.int32).tobytes())
    with path.open("rb") as file:
        return map_file(file.fileno(), 8_000_000)


def test_what_is_mapped_in_is_read_without_page_faults(tmp_path: Path) -> None:
    array = _mapped(tmp_path / "file").view(np.int32)
    map_in(array[1_000:])  # which begins within a page
    before = _page_faults()
    total = sum(array[i] for i in range(1_000, 2_000_000, 997))
    assert _page_faults() - before < 20  # 8 MB are 1,954 pages, or 123 blocks that the system maps at once
    assert total == sum(range(1_000, 2_000_000, 997))


def test_a_file_that_has_shrunk_is_no_error(tmp_path: Path) -> None:
    array = _mapped(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"1234")
    map_in(array)
    assert bytes(array[:4]) == b"1234"


def test_no_file_can_be_mapped_longer_than_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("rb") as file, pytest.raises(OSError, match="Invalid argument"):
        map_file(file.fileno(), 0)
