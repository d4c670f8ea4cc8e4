"""Writing files so that a reader, or a crash, never meets half of one."""

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO


@contextmanager
def temporary_file(directory: Path) -> Iterator[BinaryIO]:
    """A new file in ``directory``, on disk once the block ends, removed if the block raises.

    Its name begins with a dot; the caller renames it, within ``directory``, to the name readers look for.
    """
    path = directory / f".{uuid.uuid4().hex}.tmp"
    try:
        with path.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Give ``path`` a new content, so that a reader, or a kill, meets the old one or the new one."""
    with temporary_file(path.parent) as file:
        file.write(text.encode())
    os.replace(file.name, path)


def check_writable(directory: Path) -> None:
    """Make a file in ``directory`` and remove it: permissions alone do not tell whether one can be made.

    Raises:
        OSError: none can.
    """
    with temporary_file(directory) as probe:
        probe.write(b"\0")
    Path(probe.name).unlink()


def sync(path: Path) -> None:
    """Make a file's content, or the renames in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_file(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading; a pipe or a device would be waited for.

    Raises:
        OSError: it is something else, is missing, or cannot be read.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def signature(path: Path) -> tuple[int, ...]:
    """What changes with every replacement of a file; asks the file system, nothing else.

    Raises:
        OSError: there is none.
    """
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
