"""The output file: whole lines only, locked, and able to go on where an earlier run stopped.

Rows go to ``OUTPUT.part``, with the settings that shaped them in ``OUTPUT.part.json``; the part file takes
its final name when every row is there.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from vllm_dare.errors import DareError
from vllm_dare.generation.ids import IdSet

_FSYNC_SECONDS = 1.0


class OutputFile:
    """An open, locked part file. Use `OutputFile.open` and, at the end, `close` or `finish`.

    Attributes:
        done: ids of the rows that are in the file since earlier runs.
        failed: how many of those rows are errors.
        dropped_bytes: what an interrupted write had left at the end, now cut off.
    """

    def __init__(self, output: Path, descriptor: int) -> None:
        self.output = output
        self.part, self.settings_file = _part(output), _settings_file(output)
        self._descriptor = descriptor
        self._synced_at = time.monotonic()
        self.done = IdSet()
        self.failed = 0
        self.dropped_bytes = 0

    @classmethod
    def open(cls, output: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Self:
        """Lock the part file and keep what earlier runs with the same settings have finished.

        Args:
            output: the final name; an older file there stays until `finish`.
            settings: everything that shapes the rows, as JSON values.
            overwrite: begin anew, whatever is in the part file.

        Raises:
            DareError: another process writes it, its settings differ, or the folder is not writable.
        """
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            file = cls(output, _open_locked(_part(output)))
        except OSError as error:
            raise DareError(f"{output} cannot be written: {error.strerror}.") from None
        try:
            file._begin(settings) if overwrite else file._continue(settings)
        except BaseException:
            file.close()
            raise
        return file

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; it survives the end of this process at once, a power cut after about a second."""
        data = _encode(row)
        while data:
            data = data[os.write(self._descriptor, data) :]
        if time.monotonic() - self._synced_at >= _FSYNC_SECONDS:
            self._sync()

    def finish(self) -> None:
        """Give the file its final name and close it."""
        self._sync()
        os.replace(self.part, self.output)
        self.settings_file.unlink(missing_ok=True)
        _sync_folder(self.output.parent)
        os.close(self._descriptor)

    def close(self) -> None:
        """Close the part file; a later run goes on with it."""
        self._sync()
        os.close(self._descriptor)

    def _begin(self, settings: Mapping[str, Any]) -> None:
        os.ftruncate(self._descriptor, 0)
        temporary = self.settings_file.with_name(self.settings_file.name + ".tmp")
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, self.settings_file)

    def _continue(self, settings: Mapping[str, Any]) -> None:
        if os.fstat(self._descriptor).st_size == 0:
            self._begin(settings)
            return
        self._check_settings(settings)
        rows = CompleteRows(self.part)
        self.done = IdSet(row["id"] for row in rows)
        self.failed = rows.failed
        self.dropped_bytes = os.fstat(self._descriptor).st_size - rows.end
        os.ftruncate(self._descriptor, rows.end)

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.settings_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise DareError(
                f"{self.part} exists, but the file with its settings, {self.settings_file.name}, is missing "
                "or damaged; use --overwrite to begin anew."
            )
        now = json.loads(json.dumps(settings))
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if names:
            changes = ", ".join(
                f"{name} ({before.get(name)!r} then, {now.get(name)!r} now)" for name in names
            )
            raise DareError(
                f"{self.part} was begun with other settings: {changes}; use the same settings to go on, or "
                "--overwrite to begin anew."
            )

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
                self.failed += row.get("finish_reason") == "error"
                yield row


def is_begun(output: Path) -> bool:
    """Whether an earlier run left rows to go on with."""
    part = _part(output)
    return part.exists() and part.stat().st_size > 0


def _part(output: Path) -> Path:
    return output.with_name(output.name + ".part")


def _settings_file(output: Path) -> Path:
    return output.with_name(output.name + ".part.json")


def _open_locked(part: Path) -> int:
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


def _encode(row: Mapping[str, Any]) -> bytes:
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
