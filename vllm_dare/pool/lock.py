"""Who reads a pool and who changes it: readers keep old files in place, and one at a time may change it."""

import fcntl
import hashlib
import os
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.files import open_file
from vllm_dare.pool.manifest import MANIFEST_NAME, SEGMENTS_DIRECTORY

READERS_NAME = "readers"
_MOST_VERSIONS = 2**62


class ReadLock:
    """Held by a reader of one version of a pool; `has_older_readers` tells who changes it.

    It is a lock of one byte, the version's, in the file `readers`, which holds nothing. The system drops it
    with its process, however that ends. On a file system that has no such locks, or where the file cannot be
    made, nothing is locked, and who changes a pool does not wait for readers.

    Args:
        directory: the pool.
        version: see `version_of`.
    """

    def __init__(self, directory: Path, version: int) -> None:
        self.version = version
        descriptor = _open_readers(directory)
        if descriptor is None:
            self.release: weakref.finalize = weakref.finalize(self, _nothing)  # type: ignore[type-arg]
            return
        _range_lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, version, 1)
        self.release = weakref.finalize(self, os.close, descriptor)


def version_of(directory: Path) -> int:
    """A number that stands for the manifest as it is now; 0 if it cannot be read."""
    try:
        with open_file(directory / MANIFEST_NAME) as file:
            content = file.read()
    except OSError:
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") % _MOST_VERSIONS


def has_older_readers(directory: Path) -> bool:
    """Whether any process, this one included, reads another version of the pool than the present one."""
    descriptor = _open_readers(directory)
    if descriptor is None:
        return False
    version = version_of(directory)
    try:
        before = version and _range_lock(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, 0, version)
        return bool(before) or _range_lock(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, version + 1, 0)
    finally:
        os.close(descriptor)


def _open_readers(directory: Path) -> int | None:
    """A descriptor of the file; None where there is none and none can be made."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return None
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # a pool may be mounted for reading alone
        try:
            return os.open(directory / READERS_NAME, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError:
            continue
    return None


def _range_lock(descriptor: int, command: int, kind: int, start: int, length: int) -> bool:
    """Set a lock of some bytes (0: all that follow), or tell whether another one is in the way of it."""
    request = struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0)  # struct flock of 64-bit Linux
    try:
        answer = fcntl.fcntl(descriptor, command, request)
    except OSError:  # a file system without locks
        return False
    return bool(struct.unpack("@hhqqi4x", answer)[0] != fcntl.F_UNLCK)


def _nothing() -> None:
    pass


@contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Keep other processes from changing the pool until the block ends; readers go on reading.

    Raises:
        PoolError: another one is at it, or the pool has no directory of segments.
    """
    segments = directory / SEGMENTS_DIRECTORY
    try:
        descriptor = os.open(segments, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PoolError(
            f"Cannot open the directory {segments} ({error.strerror}); copy the pool again in full."
        ) from None
    try:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise PoolError(
                f"Another process is changing the pool {directory}; try again when it has finished."
            )
        yield
    finally:
        os.close(descriptor)  # which drops the lock, as the end of the process does


def _lock(descriptor: int, operation: int) -> bool:
    """False iff another one holds a lock."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
