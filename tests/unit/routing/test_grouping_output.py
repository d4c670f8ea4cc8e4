"""A directory of groups is there whole, or as it was."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vllm_dare.errors import DareError
from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.routing.grouping_output import (
    ASSIGNMENTS_NAME,
    check_grouping_output,
    staged_directory,
    write_assignment_table,
)


def make(output: Path, content: str) -> None:
    with staged_directory(output) as directory:
        (directory / ASSIGNMENTS_NAME).write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_and_replaced(tmp_path: Path) -> None:
    output = tmp_path / "new" / "groups"
    make(output, "one")
    (output / "groups.png").write_text("old")
    make(output, "two")
    assert names(output) == [ASSIGNMENTS_NAME]
    assert (output / ASSIGNMENTS_NAME).read_text() == "two"
    assert names(tmp_path / "new") == ["groups"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "groups"
    make(output, "one")
    with pytest.raises(error), staged_directory(output) as directory:
        (directory / ASSIGNMENTS_NAME).write_text("half")
        raise error
    assert (output / ASSIGNMENTS_NAME).read_text() == "one"
    assert names(tmp_path) == ["groups"]


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(DareError, match=r"Cannot write .*groups \(No space left\)"),
        staged_directory(tmp_path / "groups"),
    ):
        raise OSError(28, "No space left")
    assert names(tmp_path) == []


def test_what_may_be_replaced(tmp_path: Path) -> None:
    output = tmp_path / "groups"
    check_grouping_output(output, False, [])
    output.mkdir()
    with pytest.raises(DareError, match=r"exists already; .* --overwrite"):
        check_grouping_output(output, False, [])
    check_grouping_output(output, True, [])
    (output / "thesis.tex").write_text("")
    with pytest.raises(DareError, match="is not a directory of groups"):
        check_grouping_output(output, True, [])
    make(output := tmp_path / "other", "one")
    check_grouping_output(output, True, [])
    with pytest.raises(DareError, match="is not a directory of groups"):
        check_grouping_output(output / ASSIGNMENTS_NAME, True, [])
    with pytest.raises(DareError, match="no file can be made in"):
        check_grouping_output(output / ASSIGNMENTS_NAME / "below", False, [])


@pytest.mark.parametrize(
    "name", ["notes.txt", "interactions.csv", "router-1.csv", ".hidden", "a/report.json"]
)
def test_foreign_files_are_never_removed(tmp_path: Path, name: str) -> None:
    make(output := tmp_path / "groups", "one")
    for own in ("router-0123.safetensors", "report.json", "groups.png"):
        (output / own).write_text("own")
    check_grouping_output(output, True, [])
    foreign = output / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    holds = rf"holds {Path(name).parts[0]}, .*choose another --output"
    with pytest.raises(DareError, match=holds):
        check_grouping_output(output, True, [])
    with pytest.raises(DareError, match=holds):
        make(output, "two")  # it came while the groups were made
    assert (output / ASSIGNMENTS_NAME).read_text() == "one"
    assert foreign.read_text() == "mine"
    assert names(tmp_path) == ["groups"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    make(output := tmp_path / "groups", "one")
    link = tmp_path / "link"
    link.symlink_to("groups")
    with pytest.raises(DareError, match="link exists already"):
        check_grouping_output(link, False, [])
    check_grouping_output(link, True, [])
    make(link, "two")
    assert link.is_symlink()
    assert (output / ASSIGNMENTS_NAME).read_text() == "two"
    (output / "notes.txt").write_text("mine")
    with pytest.raises(DareError, match=r"groups holds notes.txt"):
        check_grouping_output(link, True, [])


def test_a_link_to_nothing_and_one_to_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    check_grouping_output(tmp_path / "link", False, [])
    make(tmp_path / "link", "one")
    assert names(tmp_path / "new") == [ASSIGNMENTS_NAME]
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DareError, match="Cannot write"):
        make(tmp_path / "circle", "one")


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_input_may_lie_in_the_output(tmp_path: Path, overwrite: bool) -> None:
    make(output := tmp_path / "groups", "one")
    (tmp_path / "link").symlink_to("groups")
    (tmp_path / "table.parquet").symlink_to(output / ASSIGNMENTS_NAME)
    for table in (output / ASSIGNMENTS_NAME, output / "not there", tmp_path / "table.parquet"):
        for given in (output, tmp_path / "link"):
            with pytest.raises(DareError, match=r"lies in .*(groups|link), .*choose another --output"):
                check_grouping_output(given, overwrite, [tmp_path / "a.csv", table])
    check_grouping_output(output, True, [tmp_path / "a.csv", tmp_path / "groups.csv"])


def test_the_table_is_one_that_pools_read(tmp_path: Path) -> None:
    places = np.array([1, 0, -1], np.int32)
    write_assignment_table(tmp_path, "user", ["7", "bob", "x"], places, ["g/0", "g/1"])
    path = tmp_path / ASSIGNMENTS_NAME
    assert list(read_assignments(path)) == [("user", "7", "g/1"), ("user", "bob", "g/0")]
    assert pq.read_table(path).column_names == ["user", "group"]
    assert names(tmp_path) == [ASSIGNMENTS_NAME]
