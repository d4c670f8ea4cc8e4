"""Who reads a pool and who changes it: readers keep old files in place, and one at a time may change it."""

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.manifest import SEGMENTS_DIRECTORY


class ReadLock:
    """Held by a reader of a pool; `is_read` tells a builder of it.

    The system drops the lock with its process, however that ends. On a file system that has no locks, nothing
    is locked, and a builder does not wait for readers.
    """

    def __init__(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY)
        _lock(descriptor, fcntl.LOCK_SH)
        self.release = weakref.finalize(self, os.close, descriptor)


def is_read(directory: Path) -> bool:
    """Whether any process, this one included, holds a `ReadLock`."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


@contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Keep other processes from changing the pool until the block ends; readers go on reading.

    Raises:
        PoolError: another one is at it.
    """
    descriptor = os.open(directory / SEGMENTS_DIRECTORY, os.O_RDONLY)  # readers lock the directory
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
