"""Where contexts occur in a source and what follows them there, remembered across steps and requests.

Texts that draft for each other share their phrases, so that most contexts of a request were looked up for
an earlier one. A cache is a table of records, each with the range of one context in one source and, once
that was asked for, the tokens that follow it. A record is found by a hash of the context's tokens and its
source; a new one takes the place of whatever was there. What a record says is what a look-up anew would
find: the cache changes the time that a chain takes, never the chain. A look-up that hits reads one or two
cache lines where a search in a large suffix array reads a hundred places all over it.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.pool.kernels import array_at, int32_array, int64_array

# A range of more places than this is read at this many evenly spaced ones. The range is sorted by
# continuation, so they are a stratified sample: frequent continuations are met in proportion. More of them
# draft no better (64: 4.97 tokens per step on LLM-written user knowledge, 16: 4.98).
SAMPLES = 16
# Ranges of fewer places are as quickly read and narrowed in the segment.
WORTH_CACHING = 8

_RECORD_BYTES = 128
# A record for so many tokens of the pool, between these numbers, which are powers of two: 16 to 128 MB. In a
# larger pool more contexts have many places, and a search that misses the cache takes longer.
_TOKENS_PER_RECORD = 128
_FEWEST_RECORDS, _MOST_RECORDS = 1 << 17, 1 << 20
_CACHE_LINE = 64
_HEADER_BYTES = 64  # before the records; its first word is one less than their number
# A record: its key in the first 8 bytes, then as int32 the range and the number of different tokens that
# follow (-1 if they have not been counted), as bytes how often each does, and as int32 which they are.
_LOW, _HIGH, _NUMBER = 2, 3, 4
_COUNTS_BYTE = 20
_TOKENS_BYTE = _COUNTS_BYTE + SAMPLES

_FACTOR = -7046029254386353131  # odd, with bits all over, as are the next ones
_STIR = -4417276706812531889
_SPREAD = 6364136223846793005
_POWERS = np.array([pow(_FACTOR, n, 1 << 64) for n in range(256)], dtype=np.uint64).astype(np.int64)


def make_cache(pool_tokens: int) -> npt.NDArray[np.int64]:
    """An empty cache for look-ups in so many tokens; it takes memory as it fills, or at once by `touch`."""
    wanted = 1 << (pool_tokens // _TOKENS_PER_RECORD).bit_length()
    number = min(max(wanted, _FEWEST_RECORDS), _MOST_RECORDS)
    words = (_HEADER_BYTES + number * _RECORD_BYTES) // 8
    memory = np.zeros(words + _CACHE_LINE // 8, dtype=np.int64)
    begin = -memory.ctypes.data % _CACHE_LINE // 8  # so that a record is in two cache lines, not in three
    cache = memory[begin : begin + words]
    cache[0] = number - 1
    return cache


def touch(cache: npt.NDArray[np.int64]) -> None:
    """Have the system give an empty cache all its memory now; numpy lets other threads run meanwhile."""
    cache[_HEADER_BYTES // 8 :] = 0


@njit(inline="always")
def extend_hash(before, token):  # type: ignore[no-untyped-def]
    """The hash of a text and one token more, from that of the text (0 for none)."""
    return before * _FACTOR + (token + 2)


@njit(inline="always")
def context_key(hashes, start, end, identity):  # type: ignore[no-untyped-def]
    """The key of context[start:end] in a source.

    Args:
        hashes: int64[any], hashes[i] is that of context[:i].
        identity: the source's.
    """
    # Hashes of one token and identities are small numbers: spread the former before they meet.
    key = (hashes[end] - hashes[start] * _POWERS[end - start]) * _STIR ^ identity
    return key ^ (key >> 32)


@njit(inline="always")
def record_of(cache, key):  # type: ignore[no-untyped-def]
    """The address of the record that has a key, or that would have it."""
    return cache + _HEADER_BYTES + ((key * _SPREAD >> 40) & int64_array(cache, 1)[0]) * _RECORD_BYTES


@njit(inline="always")
def has_key(record, key):  # type: ignore[no-untyped-def]
    """Whether the record is about this context."""
    return int64_array(record, 1)[0] == key


@njit(inline="always")
def read_range(record):  # type: ignore[no-untyped-def]
    """The range [lo, hi) of the record's context."""
    words = int32_array(record, _NUMBER)
    return np.int64(words[_LOW]), np.int64(words[_HIGH])


@njit(inline="always")
def write_range(record, key, lo, hi):  # type: ignore[no-untyped-def]
    """Begin a record, with nothing counted yet."""
    int64_array(record, 1)[0] = key
    words = int32_array(record, _NUMBER + 1)
    words[_LOW], words[_HIGH], words[_NUMBER] = lo, hi, -1


@njit(inline="always")
def number_of_tokens(record):  # type: ignore[no-untyped-def]
    """How many different tokens follow the record's context; -1 if they have not been counted."""
    return np.int64(int32_array(record, _NUMBER + 1)[_NUMBER])


@njit(inline="always")
def set_number_of_tokens(record, number):  # type: ignore[no-untyped-def]
    """What follows has been counted, see `tokens_of`."""
    int32_array(record, _NUMBER + 1)[_NUMBER] = number


@njit(inline="always")
def tokens_of(record):  # type: ignore[no-untyped-def]
    """(int32[SAMPLES], uint8[SAMPLES]): the tokens that follow, and at how many of the sampled places."""
    return int32_array(record + _TOKENS_BYTE, SAMPLES), array_at(record + _COUNTS_BYTE, (SAMPLES,), np.uint8)


@njit(inline="always")
def sampled(lo, size, i):  # type: ignore[no-untyped-def]
    """The i-th sampled place of the range [lo, lo + size); of a small one all are."""
    return lo + i if size <= SAMPLES else lo + ((2 * i + 1) * size) // (2 * SAMPLES)


@njit(inline="always")
def bounds_of(record, lo, hi, token):  # type: ignore[no-untyped-def]
    """Where the suffixes of a range that go on with a token are, as far as its sampled places tell.

    Args:
        record: in which the tokens that follow have been counted.
        lo, hi: the record's range, of more than SAMPLES places.

    Returns:
        (a, b, c, d): their first is one of [a, b], and the one after their last one of [c, d].
    """
    following, counts = tokens_of(record)
    number = number_of_tokens(record)
    first, below = 0, 0
    while first < number and following[first] < token:
        below += counts[first]
        first += 1
    met = np.int64(counts[first]) if first < number and following[first] == token else 0
    a = sampled(lo, hi - lo, below - 1) + 1 if below > 0 else lo
    d = sampled(lo, hi - lo, below + met) if below + met < SAMPLES else hi
    if met == 0:
        return a, d, a, d
    return a, sampled(lo, hi - lo, below), sampled(lo, hi - lo, below + met - 1) + 1, d
