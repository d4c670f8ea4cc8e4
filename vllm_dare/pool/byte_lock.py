"""Locks of single bytes of an empty file: each says a number; the system drops them with their process."""

import fcntl
import os
import struct
import weakref
from pathlib import Path


class ByteLock:
    """Says a number to whoever asks `is_byte_locked`, until it is released, garbage, or its process ends.

    On a file system that has no such locks, or where the file cannot be made, nothing is said.

    Args:
        path: the file; it is made where it is missing.
        number: below 2**63.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        descriptor = _open(path)
        self._inode = None if descriptor is None else os.fstat(descriptor).st_ino
        if descriptor is None:
            self.release: weakref.finalize = weakref.finalize(self, _nothing)  # type: ignore[type-arg]
            return
        _range_lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, number, 1)
        self.release = weakref.finalize(self, os.close, descriptor)

    def is_heard(self) -> bool:
        """Whether the file is still the one that it was, so that others look there."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False


def is_byte_locked(path: Path, start: int, length: int) -> bool:
    """Whether anybody, this process included, says a number in [start, start + length).

    Args:
        path: the file.
        start, length: the range; the length 0 stands for all that follows.
    """
    descriptor = _open(path)
    if descriptor is None:
        return False
    try:
        return _range_lock(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, start, length)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int | None:
    """A descriptor of the file; None where there is none and none can be made."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return None
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # it may be mounted for reading alone
        try:  # a pool of others may have a link there, to a file that is none of its own
            return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
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
