"""Telling who replaces a pool that somebody still reads the old one."""

import fcntl
import os
import weakref
from pathlib import Path


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


def _lock(descriptor: int, operation: int) -> bool:
    """False iff another one holds a lock."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
