"""Mapping files without keeping them open.

`mmap.mmap`, and with it `numpy.memmap`, holds a file descriptor for as long as the mapping lives (until
Python 3.13), so that a pool of a few thousand groups would run into the usual limit of open files.
"""

import ctypes
import mmap
import os
import weakref

import numpy as np

_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_ssize_t,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MADV_POPULATE_READ = 22  # which Python's mmap does not name


def map_file(descriptor: int, num_bytes: int) -> np.ndarray:
    """The first ``num_bytes`` bytes of a file, uint8[num_bytes], read-only; unmapped with its last view.

    Args:
        descriptor: an open file, which may be closed afterwards.
        num_bytes: at least 1 and at most the size of the file.

    Raises:
        OSError: the system refuses the mapping.
    """
    return np.asarray(_Mapping(descriptor, num_bytes))


def map_in(array: np.ndarray) -> None:
    """Have the system read a mapped array, and enter its pages in this process's tables, which takes a few
    milliseconds a GB where they are in memory already. Else look-ups meet a page fault at every new place.

    Linux before 5.14 does nothing.

    Args:
        array: contiguous, in a file that `map_file` mapped.
    """
    begin = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(begin, array.ctypes.data + array.nbytes - begin, _MADV_POPULATE_READ)


class _Mapping:
    """Owns the mapped memory, as the base of every array over it."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        address = _libc.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (num_bytes,),
            "data": (address, True),
        }
        # At exit another thread may still be reading; the system unmaps anyway.
        weakref.finalize(self, _libc.munmap, address, num_bytes).atexit = False
