"""Which of a text's last tokens are looked up, where they occur in each source, and what is kept of that.

A context is a suffix of the text (or of the text and the drafts so far) that begins at a certain position.
Those that begin at any of the last 4 positions are looked up, and of the 4, 8 and 16 before those every
second, fourth and eighth one (`is_context`). The rule goes by the position in the text: when the text grows,
contexts grow with it and the far ones drop out, so that what is known of one at this step is of use at the
next: its range in the suffix array is narrowed by the new tokens alone.
"""

from numba import njit

from vllm_dare.pool.kernels import (
    CACHE,
    NUM_SUFFIXES,
    NUM_TOKENS,
    SUFFIXES,
    TOKENS,
    find,
    int32_array,
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
def occurrences(row, context, start, length, ranges, source, index):  # type: ignore[no-untyped-def]
    """The range [lo, hi) of context[start:start+length] in a source.

    Args:
        ranges: (lows, highs, depths), int64[sources, any] each: the range that is known for a context and
            for how many of its tokens; 0 for none. Brought up to `length` tokens here.
        index: the context's column in `ranges`.
    """
    lows, highs, depths = ranges
    lo, hi, depth = lows[source, index], highs[source, index], depths[source, index]
    if depth == length:
        return lo, hi
    if depth == 0:
        lo, hi = find(row, context, start, length)
    elif hi > lo:
        tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
        suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
        lo, hi = narrow(tokens, suffixes, lo, hi, depth, context, start + depth, length - depth)
    lows[source, index], highs[source, index], depths[source, index] = lo, hi, length
    return lo, hi


@njit(cache=CACHE, nogil=True)
def longest_match(row, context, base, known, ranges, source):  # type: ignore[no-untyped-def]
    """The index of the longest context that occurs in a source; `known` if none does.

    If a context occurs, so does every shorter one. The search gallops from the longest on: where texts repeat
    each other, and where an earlier step has found out what does not occur any more, that is near.

    Args:
        context: int32[...], its first `known` tokens are the last ones of the text.
        base: the position of context[0] in the text.
    """
    absent = -1  # the last index known not to occur
    step = 1
    index = _next_context(base, 0, known)
    while index < known:
        lo, hi = occurrences(row, context, index, known - index, ranges, source, index)
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
        lo, hi = occurrences(row, context, middle, known - middle, ranges, source, middle)
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
