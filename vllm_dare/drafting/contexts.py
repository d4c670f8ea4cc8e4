"""Which of a text's last tokens are looked up, where they occur in each source, and what is kept of that.

A context is a suffix of the text (or of the text and the drafts so far) that begins at a certain position.
Those that begin at any of the last 4 positions are looked up, and of the 4, 8 and 16 before those every
second, fourth and eighth one (`is_context`). The rule goes by the position in the text: when the text grows,
contexts grow with it and the far ones drop out, so that what is known of one at this step is of use at the
next: its range in the suffix array is narrowed by the new tokens alone.
"""

from numba import njit

from vllm_dare.drafting.cache import (
    SAMPLES,
    WORTH_CACHING,
    bounds_of,
    context_key,
    has_key,
    number_of_tokens,
    read_range,
    record_of,
    write_range,
)
from vllm_dare.pool.kernels import (
    IDENTITY,
    NUM_SUFFIXES,
    NUM_TOKENS,
    SUFFIXES,
    TOKENS,
    find,
    first_above,
    first_not_below,
    int32_array,
    kernel,
    narrow,
)

# The longest context. A power of two: positions are kept in rings of this size.
MAX_MATCH = 32


@njit(inline="always")
def is_context(position, length):  # type: ignore[no-untyped-def]
    """Whether the context of `length` tokens that begins at `position` of the text is looked up."""
    if length <= 4:
        return True
    if length <= 8:
        return position & 1 == 0
    if length <= 16:
        return position & 3 == 0
    return length <= MAX_MATCH and position & 7 == 0


@njit(inline="always")
def occurrences(cache, row, context, start, length, ranges, source):  # type: ignore[no-untyped-def]
    """The range [lo, hi) of the `length` tokens of a context from `start` on in a source.

    Args:
        cache: address of a cache, see `vllm_dare.drafting.cache`.
        context: (tokens, hashes), see `workspace_arrays`.
        ranges: (lows, highs, depths), int64[sources, any] each: the range that is known for a context, by
            its start, and for how many of its tokens; 0 for none. Brought up to `length` tokens here.
    """
    lows, highs, depths = ranges
    lo, hi, depth = lows[source, start], highs[source, start], depths[source, start]
    if depth == length:
        return lo, hi
    if depth == 0 or hi > lo:
        lo, hi = _search(cache, row, context, start, length, lo, hi, depth)
        lows[source, start], highs[source, start] = lo, hi
    depths[source, start] = length
    return lo, hi


@njit(inline="always")
def _knows(record, key, row):  # type: ignore[no-untyped-def]
    """Whether a record is about a context of a source.

    Texts can be made up that share a key with another context; no range may lead out of the source.
    """
    return has_key(record, key) and read_range(record)[1] <= row[NUM_SUFFIXES]


@kernel
def _search(cache, row, context, start, length, lo, hi, depth):  # type: ignore[no-untyped-def]
    """`occurrences` of a context whose first `depth` tokens occur in [lo, hi)."""
    if depth > 0 and hi - lo < WORTH_CACHING:
        return _narrow(row, context, start, length, lo, hi, depth)
    key = context_key(context[1], start, start + length, row[IDENTITY])
    record = record_of(cache, key)
    if _knows(record, key, row):
        return read_range(record)
    if depth == 0:
        lo, hi, depth = _search_prefix(cache, row, context, start, length)
    if depth < length:
        lo, hi = _narrow_large(cache, row, context, start, length, lo, hi, depth)
    if hi - lo >= WORTH_CACHING:
        write_range(record, key, lo, hi)
    return lo, hi


@kernel
def _search_prefix(cache, row, context, start, length):  # type: ignore[no-untyped-def]
    """The range of a context's first tokens, as many as the cache knows, and how many these are.

    Most contexts that are met for the first time begin with tokens that are not.
    """
    for depth in range(min(length - 1, 4), 1, -1):
        key = context_key(context[1], start, start + depth, row[IDENTITY])
        record = record_of(cache, key)
        if _knows(record, key, row):
            lo, hi = read_range(record)
            return lo, hi, depth
    depth = min(length, 2)
    lo, hi = find(row, context[0], start, depth)
    if hi - lo >= WORTH_CACHING:
        key = context_key(context[1], start, start + depth, row[IDENTITY])
        write_range(record_of(cache, key), key, lo, hi)
    return lo, hi, depth


@njit(inline="always")
def _narrow(row, context, start, length, lo, hi, depth):  # type: ignore[no-untyped-def]
    """From the range of a context's first `depth` tokens to that of `length`."""
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    return narrow(tokens, suffixes, lo, hi, depth, context[0], start + depth, length - depth)


@kernel
def _narrow_large(cache, row, context, start, length, lo, hi, depth):  # type: ignore[no-untyped-def]
    """`_narrow`, begun with what the cache knows of the tokens that follow the first `depth` ones."""
    if hi - lo < 2 * SAMPLES:
        return _narrow(row, context, start, length, lo, hi, depth)
    key = context_key(context[1], start, start + depth, row[IDENTITY])
    record = record_of(cache, key)
    if not has_key(record, key) or number_of_tokens(record) < 0:
        return _narrow(row, context, start, length, lo, hi, depth)
    a, b, c, d = bounds_of(record, lo, hi, context[0][start + depth])
    if length - depth > 1:
        return _narrow(row, context, start, length, a, d, depth)
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    lo, above = first_not_below(tokens, suffixes, a, b, depth, context[0], start + depth, 1)
    return lo, first_above(
        tokens, suffixes, max(lo, c), above if above < b else d, depth, context[0], start + depth, 1
    )


@kernel
def longest_match(cache, row, context, base, known, ranges, source):  # type: ignore[no-untyped-def]
    """The index of the longest context that occurs in a source; `known` if none does.

    If a context occurs, so does every shorter one. The search gallops from the longest on: where texts repeat
    each other, and where an earlier step has found out what does not occur any more, that is near.

    Args:
        cache, context, ranges: see `occurrences`; the first `known` tokens are the last ones of the text.
        base: the position of the first one in the text.
    """
    absent = -1  # the last index known not to occur
    step = 1
    index = _next_context(base, 0, known)
    while index < known:
        lo, hi = occurrences(cache, row, context, index, known - index, ranges, source)
        if hi > lo:
            break
        absent = index
        for _ in range(step):
            index = _next_context(base, index + 1, known)
        step *= 2
    present = index
    while True:
        middle = _next_context(base, (absent + 1 + present) >> 1, known)
        if middle >= present:
            middle = _next_context(base, absent + 1, known)
        if middle >= present:
            return present
        lo, hi = occurrences(cache, row, context, middle, known - middle, ranges, source)
        if hi > lo:
            present = middle
        else:
            absent = middle


@njit(inline="always")
def _next_context(base, index, known):  # type: ignore[no-untyped-def]
    """The first index from `index` on where a context begins; `known` if none does."""
    while index < known and not is_context(base + index, known - index):
        index += 1
    return min(index, known)
