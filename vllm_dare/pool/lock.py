"""Who reads a pool and who changes it: readers keep old files in place, and one at a time may change it."""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.byte_lock import ByteLock, is_byte_locked
from vllm_dare.pool.files import open_file
from vllm_dare.pool.manifest import MANIFEST_NAME, SEGMENTS_DIRECTORY

READERS_NAME = "readers"
_LOCK_NAME = "lock"
_MOST_VERSIONS = 2**62
_WAIT_SECONDS = 0.1


class ReadLock:
    """Held by a reader of one version of a pool; `has_older_readers` tells who changes it.

    It is a `ByteLock` of the version in the file `readers`. Where there are no such locks, who changes a pool
    does not wait for readers.

    Args:
        directory: the pool.
        version: see `version_of`.
    """

    def __init__(self, directory: Path, version: int) -> None:
        self.version = version
        self._lock = ByteLock(directory / READERS_NAME, version)

    def release(self) -> None:
        """The reader has ended; an end of the process, or of this object, does the same."""
        self._lock.release()


def version_of(directory: Path) -> int:
    """A number that stands for the manifest as it is now; 0 if it cannot be read."""
    try:
        with open_file(directory / MANIFEST_NAME) as file:
            content = file.read()
    except OSError:
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") % _MOST_VERSIONS


def has_readers(directory: Path) -> bool:
    """Whether any process reads any version of the pool."""
    return is_byte_locked(directory / READERS_NAME, 0, 0)


def has_older_readers(directory: Path) -> bool:
    """Whether any process, this one included, reads another version of the pool than the present one."""
    path, version = directory / READERS_NAME, version_of(directory)
    return (version > 0 and is_byte_locked(path, 0, version)) or is_byte_locked(path, version + 1, 0)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process changes what is in a directory, and keep others from it.

    Raises:
        OSError: the directory has gone, cannot be written to, or is on a file system without locks, or the
            lock's file is a link.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(directory / _LOCK_NAME, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # dropped with the descriptor, or with the process
        yield
    finally:
        os.close(descriptor)


@contextmanager
def changing(directory: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keep other processes from changing the pool until the block ends; readers go on reading.

    Args:
        directory: the pool.
        wait_seconds: how long to wait, at most, while another one is at it.

    Raises:
        PoolError: another one is still at it, or the pool has no directory of segments.
    """
    segments = directory / SEGMENTS_DIRECTORY
    try:
        descriptor = os.open(segments, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PoolError(
            f"Cannot open the directory {segments} ({error.strerror}); copy the pool again in full."
        ) from None
    try:
        if not wait_until(lambda: _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), wait_seconds):
            raise PoolError(
                f"Another process is changing the pool {directory}; try again when it has finished."
            )
        yield
    finally:
        os.close(descriptor)  # which drops the lock, as the end of the process does


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask for a condition ten times a second, once at least and for so long at most; whether it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_WAIT_SECONDS)
    return True


def _lock(descriptor: int, operation: int) -> bool:
    """False iff another one holds a lock."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
