"""Numba kernels over suffix-array segments: find a context, narrow it by a token, read a continuation.

A segment reaches a kernel as one row of an int64 table (`segment_row`), because a batch mixes any number
of memory-mapped segments and numba has no cheap list of arrays. Whoever passes a row keeps the segment's
arrays alive for the call.

A suffix-array range ``[lo, hi)`` together with a length L stands for all places in the segment where the
same L tokens occur; ``narrow`` turns it into the range of the L + 1 tokens.

Every read is bounds-checked against the segment's own length: a segment whose data rotted on disk can
give useless drafts, but never a read outside its memory.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from vllm_dare.pool.live import LiveRun
from vllm_dare.pool.segment import SEPARATOR, Segment

# Columns of a segment's row in the table that kernels take.
TOKENS, NUM_TOKENS, SUFFIXES, NUM_SUFFIXES, HEADS, HEAD_STARTS, NUM_HEADS = range(7)
NUM_COLUMNS = 7

# Below this many suffixes a linear scan beats two binary searches.
_LINEAR = 8


def _can_cache() -> bool:
    """Whether numba finds a writable place for compiled kernels; without one, `cache=True` raises."""
    try:
        njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


# Where nothing is writable (a read-only container without a home), kernels are compiled at every start.
CACHE = _can_cache()


def segment_row(segment: Segment | LiveRun) -> npt.NDArray[np.int64]:
    """The addresses and lengths of a segment's arrays, int64[NUM_COLUMNS], as the kernels take them."""
    row = np.empty(NUM_COLUMNS, dtype=np.int64)
    row[TOKENS], row[NUM_TOKENS] = segment.tokens.ctypes.data, segment.tokens.size
    row[SUFFIXES], row[NUM_SUFFIXES] = segment.suffix_array.ctypes.data, segment.suffix_array.size
    row[HEADS], row[HEAD_STARTS] = segment.heads.ctypes.data, segment.head_starts.ctypes.data
    row[NUM_HEADS] = segment.heads.size
    return row


@intrinsic  # type: ignore[untyped-decorator]
def _as_pointer(typing_context: Any, address: Any) -> Any:
    """An integer address as a pointer, for `carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


# Arrays at an address. Besides mapped segments, the kernels see their scratch memory through these:
# numba counts no references to such arrays, and counting (atomically, at each call and slice) was half of a
# look-up's time.
@njit(inline="always")
def int32_array(address, size):  # type: ignore[no-untyped-def]
    """The int32[size] array at an address."""
    return carray(_as_pointer(address), (size,), np.int32)


@njit(inline="always")
def int64_array(address, size):  # type: ignore[no-untyped-def]
    """The int64[size] array at an address."""
    return carray(_as_pointer(address), (size,), np.int64)


@njit(inline="always")
def float64_array(address, size):  # type: ignore[no-untyped-def]
    """The float64[size] array at an address."""
    return carray(_as_pointer(address), (size,), np.float64)


@njit(cache=CACHE, nogil=True)
def token_at(tokens, position):  # type: ignore[no-untyped-def]
    """The token at a position; SEPARATOR outside the segment."""
    if position < 0 or position >= tokens.size:
        return np.int32(SEPARATOR)
    return tokens[position]


@njit(cache=CACHE, nogil=True)
def _compare(tokens, position, pattern, start, count):  # type: ignore[no-untyped-def]
    """-1, 0 or 1 as the segment's tokens from `position` are below, equal to, or above the pattern."""
    for i in range(count):
        token = token_at(tokens, position + i)
        wanted = pattern[start + i]
        if token < wanted:
            return -1
        if token > wanted:
            return 1
    return 0


@njit(cache=CACHE, nogil=True)
def narrow(tokens, suffixes, lo, hi, offset, pattern, start, count):  # type: ignore[no-untyped-def]
    """The part of [lo, hi) whose suffixes hold pattern[start:start+count] from their `offset`-th token on.

    All suffixes in [lo, hi) share their first `offset` tokens. Returns (lo, hi), empty when lo == hi.
    """
    if hi - lo <= _LINEAR:
        while lo < hi and _compare(tokens, suffixes[lo] + offset, pattern, start, count) != 0:
            lo += 1
        while hi > lo and _compare(tokens, suffixes[hi - 1] + offset, pattern, start, count) != 0:
            hi -= 1
        return lo, hi
    above = hi
    left, right = lo, hi
    while left < right:
        middle = (left + right) >> 1
        order = _compare(tokens, suffixes[middle] + offset, pattern, start, count)
        if order < 0:
            left = middle + 1
        else:
            right = middle
            if order > 0:
                above = middle
    first = left
    left, right = first, above
    while left < right:
        middle = (left + right) >> 1
        if _compare(tokens, suffixes[middle] + offset, pattern, start, count) <= 0:
            left = middle + 1
        else:
            right = middle
    return first, left


@njit(cache=CACHE, nogil=True)
def find(row, pattern, start, count):  # type: ignore[no-untyped-def]
    """The suffix-array range of pattern[start:start+count] (count >= 1) in a segment; (0, 0) if absent."""
    heads = int32_array(row[HEADS], row[NUM_HEADS])
    token = pattern[start]
    index = np.searchsorted(heads, token)
    if index >= heads.size or heads[index] != token:
        return np.int64(0), np.int64(0)
    head_starts = int32_array(row[HEAD_STARTS], row[NUM_HEADS] + 1)
    lo = max(np.int64(head_starts[index]), 0)
    hi = min(np.int64(head_starts[index + 1]), row[NUM_SUFFIXES])
    if lo >= hi or count == 1:
        return lo, max(lo, hi)
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    return narrow(tokens, suffixes, lo, hi, 1, pattern, start + 1, count - 1)
