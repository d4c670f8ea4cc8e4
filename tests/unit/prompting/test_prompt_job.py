"""A prompt file is written whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation.prompts import read_prompts
from vllm_dare.prompting.frameworks import FRAMEWORKS
from vllm_dare.prompting.job import Written, check_output, write_prompts
from vllm_dare.prompting.rows import RowMaker
from vllm_dare.prompting.selection import Selection, Tables, select
from vllm_dare.prompting.subjects import Subject, User

WriteTable = Callable[[str, str], Path]


@pytest.fixture
def users(items_csv: Path, clicks_csv: Path) -> Selection:
    """Three users, 7, 8 and 9."""
    return select(Tables(items_csv, clicks_csv), "users")


def _name(subject: Subject) -> str:
    return f"ü{subject.id}"


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("about", ["users", "items"])
def test_generate_reads_what_is_written(
    items_csv: Path, clicks_csv: Path, tmp_path: Path, framework: str, about: Any
) -> None:
    selection = select(Tables(items_csv, clicks_csv), about)
    maker = RowMaker(framework, FRAMEWORKS[framework][about])
    written = write_prompts(selection, maker, tmp_path / "p.jsonl")
    rows = list(read_prompts(tmp_path / "p.jsonl"))
    subjects = list(select(Tables(items_csv, clicks_csv), about).subjects)
    assert [row.id for row in rows] == [f"{about[0]}{subject.id}" for subject in subjects]
    assert [row.prompt for row in rows] == [maker.builder(subject) for subject in subjects]
    assert [row.metadata for row in rows] == [{f"dare_{about[:-1]}": subject.id} for subject in subjects]
    assert written.rows == len(rows) == selection.total
    assert written.characters == sum(len(row.prompt[0]["content"]) for row in rows)  # type: ignore[index]
    assert written.choices == (5 if about == "users" else 0)


def test_progress_limit_and_what_is_counted(users: Selection, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    maker = RowMaker("own", _name, {"8": "users/1", "9": "users/1"})
    written = write_prompts(users, maker, tmp_path / "p.jsonl", 2, lambda *now: told.append(now))
    assert told == [(1, 2), (2, 2)]
    assert written == Written(rows=2, choices=4, without_group=1, characters=4)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"id": "u7", "prompt": "ü7", "user": "7"},
        {"id": "u8", "prompt": "ü8", "user": "8", "group": "users/1"},
    ]
    assert "ü7" in (tmp_path / "p.jsonl").read_text(encoding="utf-8"), "readable"


def test_a_failure_leaves_what_was_there(users: Selection, tmp_path: Path) -> None:
    def build(subject: User) -> Any:
        return None if subject.id == "9" else "Who?"

    (tmp_path / "p.jsonl").write_text("before")
    before = set(tmp_path.iterdir())
    with pytest.raises(DareError, match="returned None for user 9"):
        write_prompts(users, RowMaker("own", build), tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_text() == "before"
    assert set(tmp_path.iterdir()) == before


def test_groups_of_other_ids_are_an_error(users: Selection, tmp_path: Path) -> None:
    maker = RowMaker("own", _name, {"u8": "users/1"})
    with pytest.raises(
        DareError, match=r"None of the subjects has a group \(groups are known of such as u8\)"
    ):
        write_prompts(users, maker, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()


def test_half_a_character_does_not_stop_the_job(users: Selection, tmp_path: Path) -> None:
    write_prompts(users, RowMaker("own", lambda subject: "a\ud800"), tmp_path / "p.jsonl")
    assert [row.prompt for row in read_prompts(tmp_path / "p.jsonl")] == ["a?"] * 3


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    there = tmp_path / "p.jsonl"
    there.write_text("before")
    with pytest.raises(DareError, match=r"p.jsonl exists; use --overwrite"):
        check_output(there, [], overwrite=False)
    check_output(there, [], overwrite=True)
    with pytest.raises(DareError, match="is the file"):
        check_output(there, [there], overwrite=True)
    with pytest.raises(DareError, match="prompts are plain JSON lines"):
        check_output(tmp_path / "p.jsonl.gz", [], overwrite=False)
    with pytest.raises(DareError, match="there is no directory"):
        check_output(tmp_path / "nowhere" / "p.jsonl", [], overwrite=False)
    with pytest.raises(DareError, match="is a directory"):
        check_output(tmp_path, [], overwrite=True)
