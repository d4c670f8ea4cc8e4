"""The output of a run on many machines: a directory of whole part files, able to go on where a run stopped.

A part file, ``part-RUN-NUMBER.jsonl``, is written by one worker under a temporary name and renamed, so that
it is there whole or not at all, whatever becomes of the worker or of the run. Each run names its own parts
after its number, which is in ``_settings.json`` with the settings and the prompts' fingerprint: a worker that
its run has left behind finds another number there, and its part does not count. ``_SUCCESS`` is there once
every row is. Names that begin with an underscore or a dot are passed over by Ray, Spark and Arrow.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from vllm_dare.errors import DareError
from vllm_dare.generation.fingerprint import Fingerprint
from vllm_dare.generation.ids import IdSet
from vllm_dare.generation.output import (
    PROMPTS,
    CompleteRows,
    changes_since,
    encode_row,
    is_error,
    open_locked,
    read_record,
)
from vllm_dare.pool.files import replace_text, sync, temporary_file

_RECORD, _LOCK, _SUCCESS = "_settings.json", "_lock", "_SUCCESS"
_PARTS = "part-*.jsonl"
_LEFT_OVERS = (".*.tmp", ".*.tries")
_RUN, _SETTINGS = "run", "settings"


class PartitionedOutput:
    """An open, locked output directory. Use `PartitionedOutput.open` and, at the end, `close`.

    Attributes:
        run: the number of this run.
        done: ids of the rows that are there since earlier runs.
        failed: how many of those rows are errors.
        retried: how many more were errors, and are to be generated again.
        was_complete: whether an earlier run had written every row it was asked for.
    """

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self.run = 1
        self.done = IdSet()
        self.failed = self.retried = 0
        self.was_complete = (directory / _SUCCESS).exists()

    @classmethod
    def open(
        cls,
        directory: Path,
        settings: Mapping[str, Any],
        prompts: Fingerprint,
        *,
        overwrite: bool,
        retry_failed: bool = False,
    ) -> Self:
        """Lock the directory and keep what earlier runs with the same settings and prompts have finished.

        Args:
            directory: made if it is missing.
            settings: everything that shapes the rows, as JSON values.
            prompts: the job's rows, compared with what `recorded_prompts` says.
            overwrite: begin anew; parts of earlier runs are removed now.
            retry_failed: drop the rows that are errors, to generate them again.

        Raises:
            DareError: another process writes it, its settings differ, or it is not writable or damaged.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            output = cls(directory, open_locked(directory / _LOCK))
        except OSError as error:
            raise DareError(f"{directory} cannot be written: {error.strerror}.") from None
        try:
            output._begin(settings, prompts, overwrite, retry_failed)
        except OSError as error:
            output.close()
            raise DareError(f"{directory} cannot be written: {error.strerror}.") from None
        except BaseException:
            output.close()
            raise
        return output

    def mark_complete(self) -> None:
        """Say that every row is there, and remove what killed workers have left."""
        _remove(self.directory, *_LEFT_OVERS)
        if not self.was_complete:
            replace_text(self.directory / _SUCCESS, "")

    def mark_incomplete(self) -> None:
        """Take that back, for rows that have been added."""
        (self.directory / _SUCCESS).unlink(missing_ok=True)
        self.was_complete = False

    def close(self) -> None:
        """Unlock the directory; a later run goes on with it."""
        os.close(self._lock)

    def _begin(
        self, settings: Mapping[str, Any], prompts: Fingerprint, overwrite: bool, retry_failed: bool
    ) -> None:
        before = read_record(self.directory / _RECORD)
        self.run = _run_of(before) + 1
        if overwrite:
            self._record({}, prompts)  # first: from now on, workers of an earlier run write no more
            self.was_complete = False
            _remove(self.directory, _PARTS, _SUCCESS)
        elif parts(self.directory):
            self._check(before, settings, prompts, retry_failed)
        self._record(settings, prompts)
        _remove(self.directory, *_LEFT_OVERS)
        if retry_failed:
            self._drop_failed()
        self.done = IdSet(row["id"] for row in self._count_failed())

    def _record(self, settings: Mapping[str, Any], prompts: Fingerprint) -> None:
        record = {_RUN: self.run, _SETTINGS: {**settings, PROMPTS: prompts.record()}}
        replace_text(self.directory / _RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")

    def _check(
        self, before: Mapping[str, Any] | None, settings: Mapping[str, Any], prompts: Fingerprint, retry: bool
    ) -> None:
        if before is None or not isinstance(before.get(_SETTINGS), dict):
            raise DareError(
                f"{self.directory} has parts, but the file with their settings, {_RECORD}, is missing or "
                "damaged; use --overwrite to begin anew, or another --output."
            )
        if changes := changes_since(before[_SETTINGS], settings, prompts, retry):
            raise DareError(
                f"{self.directory} was begun with something else: {changes}; use the same again to go on, "
                "--overwrite to begin anew, or another --output."
            )

    def _count_failed(self) -> Iterator[dict[str, Any]]:
        for row in rows_so_far(self.directory):
            self.failed += is_error(row)
            yield row

    def _drop_failed(self) -> None:
        for part in parts(self.directory):
            rows = list(_rows(part))
            good = [row for row in rows if not is_error(row)]
            failed = len(rows) - len(good)
            self.retried += failed
            if failed:
                _write(part, good)


def write_part(directory: Path, run: int, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a finished partition, whole or not at all.

    Raises:
        DareError: another run has begun since, or the part cannot be written.
    """
    part = part_path(directory, run, number)
    try:
        with temporary_file(directory) as file:
            file.writelines(encode_row(row) for row in rows)
        if _run_of(read_record(directory / _RECORD)) != run:
            Path(file.name).unlink(missing_ok=True)
            raise DareError(f"Another run has taken over {directory}; this one ends.")
        os.replace(file.name, part)
        sync(directory)
        _tries(directory, run, number).unlink(missing_ok=True)
    except OSError as error:
        raise DareError(
            f"{part} cannot be written: {error.strerror}; finished parts are kept, mend that and run the "
            "same command again to go on."
        ) from None


def count_try(directory: Path, run: int, number: int) -> int:
    """Note that a worker begins with a partition.

    Returns:
        How often that has been noted in this run.
    """
    with _tries(directory, run, number).open("ab") as file:
        file.write(b".")
        return file.tell()


def _tries(directory: Path, run: int, number: int) -> Path:
    return directory / f".part-{run:04}-{number:06}.tries"


def part_path(directory: Path, run: int, number: int) -> Path:
    """The name of a run's part."""
    return directory / f"part-{run:04}-{number:06}.jsonl"


def parts(directory: Path) -> list[Path]:
    """The finished parts, in the order of their names."""
    return sorted(directory.glob(_PARTS))


def rows_so_far(directory: Path) -> Iterator[dict[str, Any]]:
    """All rows of the finished parts.

    Raises:
        DareError: a part is damaged.
    """
    for part in parts(directory):
        yield from _rows(part)


def is_partitioned_output(directory: Path) -> bool:
    """Whether a run has begun to write a directory."""
    return (directory / _RECORD).exists()


def recorded_prompts(directory: Path) -> Any:
    """The prompts' `Fingerprint.record` of the run that would be gone on with; None if unknown."""
    settings = (read_record(directory / _RECORD) or {}).get(_SETTINGS)
    return settings.get(PROMPTS) if isinstance(settings, dict) else None


def _run_of(record: Mapping[str, Any] | None) -> int:
    run = (record or {}).get(_RUN)
    return run if isinstance(run, int) else 0


def _rows(part: Path) -> Iterator[dict[str, Any]]:
    rows = CompleteRows(part)
    yield from rows
    if rows.end != part.stat().st_size:
        raise DareError(f"{part} is damaged; remove it, and run the same command again to write its rows.")


def _write(part: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with temporary_file(part.parent) as file:
        file.writelines(encode_row(row) for row in rows)
    os.replace(file.name, part)


def _remove(directory: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)
