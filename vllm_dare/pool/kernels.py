"""Numba kernels over suffix-array segments: find a context, narrow it by a token, read a continuation.

A segment reaches a kernel as one row of an int64 table (`segment_row`), because a batch mixes any number
of memory-mapped segments and numba has no cheap list of arrays. Whoever passes a row keeps the segment's
arrays alive for the call.

A suffix-array range ``[lo, hi)`` together with a length L stands for all places in the segment where the
same L tokens occur; ``narrow`` turns it into the range of the L + 1 tokens.

Every read is bounds-checked against the segment's own length: a segment whose data rotted on disk can
give useless drafts, but never a read outside its memory.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from vllm_dare.pool.live import LiveRun
from vllm_dare.pool.segment import SEPARATOR, Segment

# Columns of a segment's row in the table that kernels take.
TOKENS, NUM_TOKENS, SUFFIXES, NUM_SUFFIXES, HEADS, HEAD_STARTS, NUM_HEADS, IDENTITY = range(8)
NUM_COLUMNS = 8

# Below this many suffixes a linear scan beats two binary searches.
_LINEAR = 8
# Of a smaller range all suffixes are in cache lines that are there already.
_PREFETCHED = 32


def _can_cache() -> bool:
    """Whether numba finds a writable place for compiled kernels; without one, `cache=True` raises."""
    try:
        njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


# Where nothing is writable (a read-only container without a home), kernels are compiled at every start.
CACHE = _can_cache()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a look-up kernel, which may use arrays at addresses but make none.

    Without numba's reference counts: for such arrays they count nothing, and the calls took half of a
    look-up's time. Without its checks for divisions by zero, which are divisions by a number of places.
    """
    return njit(cache=CACHE, nogil=True, _nrt=False, error_model="numpy")(function)


def segment_row(segment: Segment | LiveRun) -> npt.NDArray[np.int64]:
    """The addresses and lengths of a segment's arrays and its identity, int64[NUM_COLUMNS], as kernels take
    them.
    """
    row = np.empty(NUM_COLUMNS, dtype=np.int64)
    row[TOKENS], row[NUM_TOKENS] = segment.tokens.ctypes.data, segment.tokens.size
    row[SUFFIXES], row[NUM_SUFFIXES] = segment.suffix_array.ctypes.data, segment.suffix_array.size
    row[HEADS], row[HEAD_STARTS] = segment.heads.ctypes.data, segment.head_starts.ctypes.data
    row[NUM_HEADS], row[IDENTITY] = segment.heads.size, segment.identity
    return row


@intrinsic  # type: ignore[untyped-decorator]
def array_at(typing_context: Any, address: Any, shape: Any, dtype: Any) -> Any:
    """The C-contiguous array of a shape (a tuple) and dtype at an address.

    That is how kernels see mapped segments, and their scratch memory too; numba's own `carray` needs its
    reference counts.
    """
    array_type = types.Array(dtype.dtype, len(shape), "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(array_type)(context, builder)
        lengths = cgutils.unpack_tuple(builder, args[1])
        item_size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
        strides = [context.get_constant(types.intp, item_size)]
        for length in reversed(lengths[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        populate_array(
            array,
            data=builder.inttoptr(args[0], array.data.type),
            shape=lengths,
            strides=strides,
            itemsize=item_size,
            meminfo=None,
        )
        return array._getvalue()

    return array_type(address, shape, dtype), codegen


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:
    """Begin to load the cache line at an address, without waiting for it; any address will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep, data = flag(0), flag(3), flag(1)
        builder.call(function, [builder.inttoptr(args[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(inline="always")
def int32_array(address, size):  # type: ignore[no-untyped-def]
    """The int32[size] array at an address."""
    return array_at(address, (size,), np.int32)


@njit(inline="always")
def int64_array(address, size):  # type: ignore[no-untyped-def]
    """The int64[size] array at an address."""
    return array_at(address, (size,), np.int64)


@kernel
def token_at(tokens, position):  # type: ignore[no-untyped-def]
    """The token at a position; SEPARATOR outside the segment."""
    if position < 0 or position >= tokens.size:
        return np.int32(SEPARATOR)
    return tokens[position]


@kernel
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


@njit(inline="always")
def _prefetch_middles(suffixes, lo, middle, hi):  # type: ignore[no-untyped-def]
    """Load both places that a search may ask for next while it reads the tokens of this one.

    In a large segment nearly every place is a miss of the processor's caches; of those that hang on each
    other, this spares half.
    """
    if hi - lo > _PREFETCHED:
        prefetch(suffixes.ctypes.data + 4 * ((lo + middle) >> 1))
        prefetch(suffixes.ctypes.data + 4 * ((middle + 1 + hi) >> 1))


@kernel
def first_not_below(tokens, suffixes, lo, hi, offset, pattern, start, count):  # type: ignore[no-untyped-def]
    """The first suffix of [lo, hi), or hi, that is not below the pattern; and one known to be above it."""
    above = hi
    while lo < hi:
        middle = (lo + hi) >> 1
        _prefetch_middles(suffixes, lo, middle, hi)
        order = _compare(tokens, suffixes[middle] + offset, pattern, start, count)
        if order < 0:
            lo = middle + 1
        else:
            hi = middle
            if order > 0:
                above = middle
    return lo, above


@kernel
def first_above(tokens, suffixes, lo, hi, offset, pattern, start, count):  # type: ignore[no-untyped-def]
    """The first suffix of [lo, hi), or hi, that is above the pattern; at least lo."""
    while lo < hi:
        middle = (lo + hi) >> 1
        _prefetch_middles(suffixes, lo, middle, hi)
        if _compare(tokens, suffixes[middle] + offset, pattern, start, count) <= 0:
            lo = middle + 1
        else:
            hi = middle
    return lo


@kernel
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
    lo, above = first_not_below(tokens, suffixes, lo, hi, offset, pattern, start, count)
    return lo, first_above(tokens, suffixes, lo, above, offset, pattern, start, count)


@kernel
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


@njit(cache=CACHE, nogil=True)
def add_counts(row, patterns, counts):  # type: ignore[no-untyped-def]
    """Add to counts, int64[n], how often each of the patterns, int32[n, length >= 1], is in a segment."""
    for i in range(patterns.shape[0]):
        lo, hi = find(row, patterns[i], 0, patterns.shape[1])
        counts[i] += hi - lo
