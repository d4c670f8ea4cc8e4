"""The output file: whole lines only, locked, and able to go on where an earlier run stopped.

Rows go to ``OUTPUT.part``, with the settings and the prompts' fingerprint that shaped them in
``OUTPUT.part.json``; these take the names ``OUTPUT`` and ``OUTPUT.settings.json`` when every row is there.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from vllm_dare.errors import DareError
from vllm_dare.generation.fingerprint import Fingerprint
from vllm_dare.generation.ids import IdSet
from vllm_dare.pool.files import sync

_FSYNC_SECONDS = 1.0
PROMPTS = "prompts"  # the key of the fingerprint among the settings
_MENDS = frozenset((PROMPTS, "max_model_len"))  # what may have been changed for rows to fail no more


class OutputFile:
    """An open, locked part file. Use `OutputFile.open` and, at the end, `finish`, `close` or `abandon`.

    Attributes:
        done: ids of the rows that are in the file since earlier runs.
        failed: how many of those rows are errors.
        retried: how many more were errors, and are to be generated again.
        dropped_bytes: what an interrupted write had left at the end, now cut off.
    """

    def __init__(self, output: Path, descriptor: int) -> None:
        self.output = output
        self.part, self.settings_file = _part(output), _settings_file(output)
        self._descriptor = descriptor
        self._synced_at = time.monotonic()
        self.done = IdSet()
        self.failed = self.retried = 0
        self.dropped_bytes = 0

    @classmethod
    def open(
        cls,
        output: Path,
        settings: Mapping[str, Any],
        prompts: Fingerprint,
        *,
        overwrite: bool,
        retry_failed: bool = False,
    ) -> Self:
        """Lock the part file and keep what earlier runs with the same settings and prompts have finished.

        Args:
            output: the final name; an older file there stays until `finish`.
            settings: everything that shapes the rows, as JSON values.
            prompts: the job's rows, compared with what `recorded` says.
            overwrite: begin anew, whatever is in the part file.
            retry_failed: drop the rows that are errors, of the finished output too, to generate them again.

        Raises:
            DareError: another process writes it, its settings differ, or the folder is not writable.
        """
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            file = cls(output, open_locked(_part(output)))
        except OSError as error:
            raise DareError(f"{output} cannot be written: {error.strerror}.") from None
        try:
            if overwrite:
                file._begin(settings, prompts)
            else:
                file._continue(settings, prompts, retry_failed)
        except OSError as error:
            file.abandon()
            raise DareError(f"{output} cannot be written: {error.strerror}.") from None
        except BaseException:
            file.abandon()
            raise
        return file

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; it survives the end of this process at once, a power cut after about a second."""
        data = encode_row(row)
        with self._telling_of_failure():
            while data:
                data = data[os.write(self._descriptor, data) :]
            if time.monotonic() - self._synced_at >= _FSYNC_SECONDS:
                self._sync()

    def finish(self) -> None:
        """Give the file its final name and close it."""
        with self._telling_of_failure():
            self._sync()
            os.replace(self.part, self.output)
            os.replace(self.settings_file, _final_settings_file(self.output))
            sync(self.output.parent)
        os.close(self._descriptor)

    def close(self) -> None:
        """Close the part file; a later run goes on with it."""
        with self._telling_of_failure():
            self._sync()
        os.close(self._descriptor)

    def abandon(self) -> None:
        """Close the part file after an error; one without a row is not left behind."""
        with suppress(OSError):
            if os.fstat(self._descriptor).st_size == 0:
                self.settings_file.unlink(missing_ok=True)  # first: alone it would pass for the output's
                self.part.unlink(missing_ok=True)
            self._sync()
        os.close(self._descriptor)

    @contextmanager
    def _telling_of_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DareError(
                f"{self.part} cannot be written: {error.strerror}; finished rows are kept, mend that and run "
                "the same command again to go on."
            ) from None

    def _begin(self, settings: Mapping[str, Any], prompts: Fingerprint) -> None:
        os.ftruncate(self._descriptor, 0)
        self._record(settings, prompts)

    def _record(self, settings: Mapping[str, Any], prompts: Fingerprint) -> None:
        record = {**settings, PROMPTS: prompts.record()}
        temporary = self.settings_file.with_name(self.settings_file.name + ".tmp")
        try:
            temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(temporary, self.settings_file)
        finally:
            temporary.unlink(missing_ok=True)

    def _continue(self, settings: Mapping[str, Any], prompts: Fingerprint, retry_failed: bool) -> None:
        begun = os.fstat(self._descriptor).st_size > 0
        if begun:
            self._check_settings(settings, prompts, retry_failed)
        else:
            self._begin(settings, prompts)
        if retry_failed:
            self._take_good_rows(self.output if not begun and self.output.exists() else self.part)
        rows = CompleteRows(self.part)
        self.done = IdSet(row["id"] for row in rows)
        self.failed = rows.failed
        self.dropped_bytes = os.fstat(self._descriptor).st_size - rows.end
        os.ftruncate(self._descriptor, rows.end)

    def _take_good_rows(self, source: Path) -> None:
        """Replace the part file by one with the rows of ``source`` that are no errors."""
        temporary = self.part.with_name(self.part.name + ".tmp")
        descriptor = open_locked(temporary)  # the part file is locked, so that nobody else has this one
        try:
            os.ftruncate(descriptor, 0)
            rows = CompleteRows(source)
            with open(descriptor, "ab", closefd=False) as file:
                file.writelines(encode_row(row) for row in rows if not is_error(row))
            os.fsync(descriptor)
            os.replace(temporary, self.part)
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor
        self.retried = rows.failed

    def _check_settings(self, settings: Mapping[str, Any], prompts: Fingerprint, retry_failed: bool) -> None:
        before = read_record(self.settings_file)
        if before is None:
            raise DareError(
                f"{self.part} exists, but the file with its settings, {self.settings_file.name}, is missing "
                "or damaged; use --overwrite to begin anew, or another --output."
            )
        if changes := changes_since(before, settings, prompts, retry_failed):
            raise DareError(
                f"{self.part} was begun with something else: {changes}; use the same again to go on, "
                "--overwrite to begin anew, or another --output."
            )
        self._record(settings, prompts)  # rows may have been added

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced_at = time.monotonic()


class CompleteRows:
    """The rows of a file up to the first line that is torn or damaged; after that nothing is trusted.

    Attributes, right once the rows have been read:
        end: the length in bytes of the good part.
        failed: how many rows are errors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.end = 0
        self.failed = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as lines:
            for line in lines:
                row = _decode(line)
                if row is None:
                    return
                self.end += len(line)
                self.failed += is_error(row)
                yield row


def is_begun(output: Path) -> bool:
    """Whether an earlier run left rows to go on with."""
    part = _part(output)
    return part.exists() and part.stat().st_size > 0


def rows_so_far(output: Path) -> Iterable[dict[str, Any]]:
    """The rows to go on with, or those of a finished output."""
    path = _part(output) if is_begun(output) else output
    return CompleteRows(path) if path.exists() else ()


def recorded_prompts(output: Path) -> Any:
    """The prompts' `Fingerprint.record` of the run that would be gone on with or kept; None if unknown."""
    before = read_record(_settings_file(output) if is_begun(output) else _finished_record(output))
    return None if before is None else before.get(PROMPTS)


def check_finished(
    output: Path, settings: Mapping[str, Any], prompts: Fingerprint, *, retry_failed: bool = False
) -> None:
    """Refuse to take a finished output for that of a run with these settings and prompts if it is not.

    To ``retry_failed`` rows, the prompts and ``max_model_len`` may be others.

    Raises:
        DareError: they differ, or are not known.
    """
    before = read_record(_finished_record(output))
    if before is None:
        raise DareError(
            f"{output} exists, and cannot be compared with this run, because "
            f"{_final_settings_file(output).name} is missing or damaged; use --overwrite to write it anew, "
            "or another --output."
        )
    if changes := changes_since(before, settings, prompts, retry_failed):
        raise DareError(
            f"{output} was written with something else: {changes}; use --overwrite to write it anew, or "
            "another --output."
        )


def written_files(output: Path) -> tuple[Path, ...]:
    """Every file that a run with this output writes."""
    return (output, _part(output), _settings_file(output), _final_settings_file(output))


def changes_since(
    before: Mapping[str, Any], settings: Mapping[str, Any], prompts: Fingerprint, retry_failed: bool
) -> str:
    """How this run differs from the one that ``before`` records; empty if it may go on with its rows."""
    now = json.loads(json.dumps(settings))
    ignored = _MENDS if retry_failed else frozenset()
    changes = [
        f"{name} ({before.get(name)!r} then, {now.get(name)!r} now)"
        for name in sorted((before.keys() | now.keys()) - {PROMPTS} - ignored)
        if before.get(name) != now.get(name)
    ]
    if PROMPTS not in ignored and (difference := prompts.difference(before.get(PROMPTS))) is not None:
        changes.append(difference)
    return ", ".join(changes)


def read_record(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _finished_record(output: Path) -> Path:
    """Where a finished output's settings are: a run that ended between its two renames left the old name."""
    left, final = _settings_file(output), _final_settings_file(output)
    return left if left.exists() and not _part(output).exists() else final


def _final_settings_file(output: Path) -> Path:
    return output.with_name(output.name + ".settings.json")


def _part(output: Path) -> Path:
    return output.with_name(output.name + ".part")


def _settings_file(output: Path) -> Path:
    return output.with_name(output.name + ".part.json")


def open_locked(part: Path) -> int:
    """A descriptor of a file, made if it is missing, that no other process has locked.

    Raises:
        DareError: another process has.
        OSError: it cannot be opened.
    """
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DareError(
                f"{part} is being written by another process; wait for it or choose another --output."
            ) from None
        if _is_same_file(descriptor, part):
            return descriptor
        os.close(descriptor)  # the other process has just finished and renamed the file


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def is_error(row: Mapping[str, Any]) -> bool:
    """Whether an output row could not be generated."""
    return row.get("finish_reason") == "error"


def encode_row(row: Mapping[str, Any]) -> bytes:
    """An output row as a line."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair in a caller's id
        return (json.dumps(row) + "\n").encode()


def _decode(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str | int) else None
