"""A run's files are told apart before anything is written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation.paths import (
    check_folders,
    check_paths,
    check_report_file,
    check_report_folder,
    report_errors,
)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    return path


@pytest.mark.parametrize("output", ["prompts.jsonl", "link.jsonl", "hard.jsonl", "../{folder}/prompts.jsonl"])
def test_the_prompts_are_not_overwritten(prompts: Path, output: str) -> None:
    with pytest.raises(DareError, match="which this run would overwrite"):
        check_paths(prompts, prompts.parent / output.format(folder=prompts.parent.name), None)


def test_prompts_that_are_another_outputs_part_file(tmp_path: Path) -> None:
    with pytest.raises(DareError, match="which this run would overwrite"):
        check_paths(tmp_path / "out.jsonl.part", tmp_path / "out.jsonl", None)


@pytest.mark.parametrize("name", ["prompts.jsonl", "link.jsonl", "out.jsonl", "out.jsonl.part"])
def test_the_summary_is_a_file_of_its_own(prompts: Path, name: str) -> None:
    with pytest.raises(DareError, match=r"--json .* too; choose another one"):
        check_paths(prompts, prompts.parent / "out.jsonl", prompts.parent / name)


def test_three_files_are_fine(prompts: Path) -> None:
    check_paths(prompts, prompts.parent / "new" / "out.jsonl", prompts.parent / "summary.json")


@pytest.mark.parametrize("name", ["summary.json", "prompts.jsonl"])
def test_a_report_that_can_be_written_leaves_no_trace_of_the_try(prompts: Path, name: str) -> None:
    before = sorted(prompts.parent.iterdir())
    check_report_file("--json", prompts.parent / name, [])
    check_report_folder("--plots", prompts.parent / "new" / "plots")
    check_report_folder("--plots", prompts.parent)
    assert sorted(prompts.parent.iterdir()) == before


@pytest.mark.parametrize("check", [check_report_file, check_report_folder])
@pytest.mark.parametrize("path", ["/proc/x", "/proc/x/y"])
def test_a_place_where_no_file_can_be_made(check: Callable[..., None], path: str) -> None:
    arguments = ([],) if check is check_report_file else ()
    with pytest.raises(DareError, match=f"--report {path} cannot be written: "):
        check("--report", Path(path), *arguments)


def test_a_report_cannot_replace_a_device() -> None:
    with pytest.raises(DareError, match="--json /dev/null is not a file that can be replaced"):
        check_report_file("--json", Path("/dev/null"), [])


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.jsonl/plots"])
def test_a_file_is_no_folder(prompts: Path, name: str) -> None:
    with pytest.raises(DareError, match=r"prompts.jsonl is a file; name another one"):
        check_report_folder("--plots", prompts.parent / name)


def test_a_report_that_cannot_be_written_in_the_end_is_named(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(DareError, match=r"--json .*out.json could not be written \(No space left on device\)"),
        report_errors("--json", tmp_path / "out.json"),
    ):
        raise full


def test_a_directory_of_parts_is_a_directory_of_its_own(prompts: Path) -> None:
    folder = prompts.parent
    check_folders(prompts, folder / "new", folder / "summary.json")
    (folder / "begun").mkdir()
    (folder / "begun" / "_settings.json").write_text("{}")
    check_folders(prompts, folder / "begun", None)
    with pytest.raises(DareError, match="is a file; with --engine ray, name a directory"):
        check_folders(prompts, folder / "link.jsonl", None)
    with pytest.raises(DareError, match="holds something else"):
        check_folders(prompts, folder, None)
    with pytest.raises(DareError, match="are in one another"):
        check_folders(folder, folder / "new", None)
    with pytest.raises(DareError, match="are in one another"):
        check_folders(folder / "begun" / "prompts.jsonl", folder / "begun", None)
