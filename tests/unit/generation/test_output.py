"""No interruption loses a finished row, doubles one, or leaves half of one."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation.fingerprint import Fingerprint
from vllm_dare.generation.output import OutputFile, check_finished, is_begun

SETTINGS = {"model": "m", "temperature": 0.0, "seed": None}
ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "Grüße\n✓", "finish_reason": "stop"},
    {"id": 2, "text": "", "finish_reason": "error", "error": "too long"},
    {"id": "c", "text": "x" * 50, "finish_reason": "length"},
]


def _open(output: Path, *, overwrite: bool = False, **settings: Any) -> OutputFile:
    return OutputFile.open(output, SETTINGS | settings, Fingerprint(), overwrite=overwrite)


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    file = _open(output)
    for row in rows:
        file.append(row)
    file.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_gets_its_name_only_when_finished(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    file = _open(output)
    for row in ROWS:
        file.append(row)
        assert not output.exists()
    assert _lines(file.part) == ROWS
    file.finish()
    assert _lines(output) == ROWS
    assert sorted(os.listdir(output.parent)) == ["out.jsonl", "out.jsonl.settings.json"]


def test_a_row_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    file = _open(tmp_path / "out.jsonl")
    file.append(ROWS[0])
    assert _lines(file.part) == ROWS[:1]
    file.close()


def test_going_on_after_a_tear_at_every_byte(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    _write(output, ROWS)
    part = tmp_path / "out.jsonl.part"
    whole = part.read_bytes()
    for length in range(len(whole) + 1):
        part.write_bytes(whole[:length])
        file = _open(output)
        complete = whole[:length].count(b"\n")
        assert len(file.done) == complete
        assert file.dropped_bytes == length - (whole[:length].rfind(b"\n") + 1)
        for row in ROWS:
            if row["id"] not in file.done:
                file.append(row)
        file.close()
        assert part.read_bytes() == whole


def test_rows_after_a_damaged_line_are_written_again(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    _write(output, ROWS)
    part = tmp_path / "out.jsonl.part"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    file = _open(output)
    assert ("a" in file.done, "c" in file.done, len(file.done)) == (True, False, 1)
    file.close()
    assert part.read_bytes() == lines[0]


def test_failed_rows_of_earlier_runs_are_counted(tmp_path: Path) -> None:
    _write(tmp_path / "out.jsonl", ROWS)
    file = _open(tmp_path / "out.jsonl")
    assert file.failed == 1
    file.close()


GOOD = [row for row in ROWS if row["finish_reason"] != "error"]


def _retry(output: Path, **settings: Any) -> OutputFile:
    return OutputFile.open(output, SETTINGS | settings, Fingerprint(), overwrite=False, retry_failed=True)


def test_failed_rows_are_dropped_to_be_retried(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    _write(output, ROWS)
    file = _retry(output)
    assert (len(file.done), file.failed, file.retried) == (2, 0, 1)
    assert _lines(file.part) == GOOD
    with pytest.raises(DareError, match="is being written by another process"):
        _open(output)
    file.append(ROWS[1])
    file.finish()
    assert _lines(output) == [*GOOD, ROWS[1]]
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.settings.json"]


def test_a_finished_output_stays_until_its_failed_rows_are_generated(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    file = _open(output)
    for row in ROWS:
        file.append(row)
    file.finish()
    file = _retry(output)
    assert _lines(output) == ROWS
    assert _lines(file.part) == GOOD
    file.close()
    file = _open(output)
    assert (len(file.done), file.retried) == (2, 0)
    file.close()


def test_a_retry_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _write(tmp_path / "out.jsonl", ROWS)
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(DareError, match="cannot be written: No space left on device"):
            _retry(tmp_path / "out.jsonl")
    assert sorted(os.listdir(tmp_path)) == before
    assert _lines(tmp_path / "out.jsonl.part") == ROWS


def test_only_what_makes_rows_fail_may_be_changed_for_a_retry(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    _write(output, ROWS)
    with pytest.raises(DareError, match="temperature"):
        _retry(output, temperature=0.7)
    _retry(output, max_model_len=4096).close()
    _open(output, max_model_len=4096).close()


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    _write(output, ROWS)
    with pytest.raises(DareError, match=r"temperature \(0.0 then, 0.7 now\).*--overwrite"):
        _open(output, temperature=0.7)
    with pytest.raises(DareError, match=r"new \(None then, 1 now\)"):
        _open(output, new=1)
    assert is_begun(output)


@pytest.mark.parametrize("damage", [None, "{", "[]"])
def test_a_part_file_without_its_settings_is_refused(tmp_path: Path, damage: str | None) -> None:
    output = tmp_path / "out.jsonl"
    _write(output, ROWS)
    settings = tmp_path / "out.jsonl.part.json"
    settings.unlink() if damage is None else settings.write_text(damage)
    with pytest.raises(DareError, match="missing or damaged; use --overwrite"):
        _open(output)


def test_overwrite_begins_anew_and_keeps_the_old_output_until_the_end(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("old\n")
    _write(output, ROWS)
    file = _open(output, overwrite=True, temperature=0.7)
    assert len(file.done) == 0
    assert output.read_text() == "old\n"
    file.append(ROWS[0])
    file.finish()
    assert _lines(output) == ROWS[:1]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    file = _open(output)
    code = (
        "import sys; from pathlib import Path; from vllm_dare.generation.output import OutputFile\n"
        "OutputFile.open(Path(sys.argv[1]), {}, None, overwrite=True)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(output)], capture_output=True, text=True, check=False
    )
    assert "is being written by another process" in result.stderr
    file.close()
    _open(output).close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DareError, match="cannot be written"):
        _open(tmp_path / "file" / "out.jsonl")


def test_a_full_disk_keeps_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = _open(tmp_path / "out.jsonl")
    file.append(ROWS[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_space)
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(DareError, match="No space left on device; finished rows are kept"):
            file.append(ROWS[1])
        with pytest.raises(DareError, match="No space left on device"):
            file.close()
        file.abandon()
    assert _lines(file.part) == ROWS[:1]


def test_a_run_without_a_row_leaves_nothing_behind(tmp_path: Path) -> None:
    _open(tmp_path / "out.jsonl").abandon()
    assert os.listdir(tmp_path) == []


def test_an_end_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    file = _open(tmp_path / "out.jsonl")
    file.append(ROWS[0])
    os.replace(file.part, file.output)
    file.close()
    check_finished(file.output, SETTINGS, Fingerprint())


def test_an_id_that_is_half_a_surrogate_pair_survives(tmp_path: Path) -> None:
    file = _open(tmp_path / "out.jsonl")
    file.append({"id": "\ud83d", "text": ""})
    file.close()
    again = _open(tmp_path / "out.jsonl")
    assert "\ud83d" in again.done
    again.close()
