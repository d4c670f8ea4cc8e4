"""A directory of part files: what is finished stays, and nothing comes twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation.fingerprint import Fingerprint, digest
from vllm_dare.generation.partition_output import (
    PartitionedOutput,
    count_try,
    part_path,
    parts,
    recorded_prompts,
    rows_so_far,
    write_part,
)
from vllm_dare.generation.prompts import PromptRow

SETTINGS = {"model": "m", "max_model_len": None}


def _prompts(number: int = 4, before: Any = None) -> Fingerprint:
    fingerprint = Fingerprint(before)
    for row in range(number):
        fingerprint.add(digest(PromptRow(row, "p", {})))
    return fingerprint


def _open(directory: Path, prompts: int = 4, **options: Any) -> PartitionedOutput:
    settings = options.pop("settings", SETTINGS)
    chosen = {"overwrite": False} | options
    fingerprint = _prompts(prompts, recorded_prompts(directory))
    return PartitionedOutput.open(directory, settings, fingerprint, **chosen)


def _row(row_id: int, reason: str = "stop") -> dict[str, Any]:
    return {"id": row_id, "text": "ü", "finish_reason": reason}


def _ids(directory: Path) -> list[int]:
    return [row["id"] for row in rows_so_far(directory)]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A directory with the rows 0 and 1 of a run that did not end; row 1 has failed."""
    directory = tmp_path / "out"
    output = _open(directory)
    write_part(directory, output.run, 0, [_row(0)])
    write_part(directory, output.run, 1, [_row(1, "error")])
    output.close()
    return directory


def test_a_later_run_goes_on(begun: Path) -> None:
    output = _open(begun)
    assert (output.run, output.failed, output.was_complete) == (2, 1, False)
    assert 0 in output.done and 1 in output.done and 2 not in output.done
    write_part(begun, output.run, 0, [_row(2), _row(3)])
    output.mark_complete()
    output.close()
    assert _ids(begun) == [0, 1, 2, 3]
    again = _open(begun)
    assert again.was_complete
    again.close()


def test_a_worker_that_was_left_behind_writes_nothing(begun: Path) -> None:
    output = _open(begun)
    with pytest.raises(DareError, match="Another run has taken over"):
        write_part(begun, output.run - 1, 2, [_row(2)])
    assert _ids(begun) == [0, 1]
    assert not list(begun.glob(".*"))
    output.close()


def test_two_runs_at_a_time_are_refused(begun: Path) -> None:
    output = _open(begun)
    with pytest.raises(DareError, match="is being written by another process"):
        _open(begun)
    output.close()


def test_other_settings_are_refused(begun: Path) -> None:
    with pytest.raises(DareError, match=r"was begun with something else: model \('m' then, 'n' now\)"):
        _open(begun, settings=SETTINGS | {"model": "n"})
    with pytest.raises(DareError, match=r"the prompts \(4 rows then, 3 now\)"):
        _open(begun, prompts=3)
    assert _ids(begun) == [0, 1]


def test_settings_do_not_matter_before_there_is_a_part(tmp_path: Path) -> None:
    _open(tmp_path / "out").close()
    _open(tmp_path / "out", settings={"model": "n"}).close()


def test_rows_may_be_added(begun: Path) -> None:
    output = _open(begun, prompts=6)
    assert 1 in output.done
    output.close()


def test_begin_anew(begun: Path) -> None:
    output = _open(begun, settings={"model": "n"}, overwrite=True)
    assert output.run == 2 and not parts(begun) and 0 not in output.done
    output.close()


def test_failed_rows_are_dropped_to_be_generated_again(begun: Path) -> None:
    output = _open(begun, settings=SETTINGS | {"max_model_len": 5}, retry_failed=True)
    assert (output.retried, output.failed) == (1, 0)
    assert 0 in output.done and 1 not in output.done
    output.close()


def test_lost_settings_are_told(begun: Path) -> None:
    (begun / "_settings.json").write_text("{")
    with pytest.raises(DareError, match="is missing or damaged"):
        _open(begun)


def test_a_damaged_part_is_told(begun: Path) -> None:
    with part_path(begun, 1, 0).open("a") as file:
        file.write('{"id": 9, "te')
    with pytest.raises(DareError, match=r"part-0001-000000.jsonl is damaged; remove it"):
        _open(begun)


def test_what_crashed_workers_left_is_removed(begun: Path) -> None:
    (begun / ".abc.tmp").write_text("half")
    count_try(begun, 1, 2)
    output = _open(begun)
    assert not list(begun.glob(".*"))
    (begun / ".abc.tmp").write_text("half")
    count_try(begun, 2, 0)  # by a worker that was killed between its part and the end of its notes
    output.mark_complete()
    output.close()
    assert not list(begun.glob(".*"))


def test_tries_are_counted_until_the_part_is_there(begun: Path) -> None:
    output = _open(begun)
    assert [count_try(begun, output.run, 0) for _ in range(3)] == [1, 2, 3]
    write_part(begun, output.run, 0, [_row(2)])
    assert count_try(begun, output.run, 0) == 1
    output.close()


def test_a_part_is_json_lines(begun: Path) -> None:
    assert json.loads(part_path(begun, 1, 0).read_text()) == _row(0)


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DareError, match="cannot be written"):
        _open(tmp_path / "out")
