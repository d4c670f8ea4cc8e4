"""Which tokens follow a context, and how often, in the segments and in the own text.

Tokens are counted into a tally, (candidates, counts, scores, origins, matches), arrays with a place for each
token that may come next; `number` is how many there are.
"""

from numba import njit

from vllm_dare.drafting.blend import OWN
from vllm_dare.drafting.cache import (
    SAMPLES,
    WORTH_CACHING,
    context_key,
    has_key,
    number_of_tokens,
    record_of,
    sampled,
    set_number_of_tokens,
    tokens_of,
    write_range,
)
from vllm_dare.drafting.contexts import occurrences
from vllm_dare.drafting.scratch import MAX_CANDIDATES
from vllm_dare.pool.kernels import (
    IDENTITY,
    NUM_COLUMNS,
    NUM_SUFFIXES,
    NUM_TOKENS,
    SUFFIXES,
    TOKENS,
    int32_array,
    kernel,
    prefetch,
    token_at,
)

# Columns of a source's row, after those of its segment (`segment_row`): its kind, see `blend`; what its
# tokens are reported to come from; and places in it that do not count, from and up to (for leave-one-out).
KIND, ORIGIN, SKIP_FROM, SKIP_TO = range(NUM_COLUMNS, NUM_COLUMNS + 4)
SOURCE_COLUMNS = NUM_COLUMNS + 4


@njit(inline="always")
def _count(tally, number, token, amount, origin, length):  # type: ignore[no-untyped-def]
    """Add to a candidate's count; returns the number of candidates."""
    candidates, counts, scores, origins, matches = tally
    for i in range(number):
        if candidates[i] == token:
            counts[i] += amount
            return number
    if number == MAX_CANDIDATES:
        return number
    candidates[number] = token
    counts[number] = amount
    scores[number] = 0.0
    origins[number] = origin
    matches[number] = length
    return number + 1


@kernel
def _count_range(row, lo, hi, length, tally, number):  # type: ignore[no-untyped-def]
    """Count the tokens after the suffixes [lo, hi); returns the number of candidates."""
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    for i in range(min(hi - lo, SAMPLES)):
        token = token_at(tokens, suffixes[sampled(lo, hi - lo, i)] + length)
        number = _count(tally, number, token, 1, row[ORIGIN], length)
    return number


@kernel
def _fill_record(row, lo, hi, length, record):  # type: ignore[no-untyped-def]
    """Put the tokens after the suffixes [lo, hi) into the context's record."""
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    following, counts = tokens_of(record)
    looks = min(hi - lo, SAMPLES)
    # First where they stand, then what they are: the reads that miss the processor's caches go side by side.
    for i in range(looks):
        following[i] = suffixes[sampled(lo, hi - lo, i)]
        prefetch(row[TOKENS] + 4 * (following[i] + length))
    number = 0
    for i in range(looks):
        token = token_at(tokens, following[i] + length)
        if number > 0 and following[number - 1] == token:  # the range is sorted by what follows
            counts[number - 1] += 1
        else:
            following[number] = token
            counts[number] = 1
            number += 1
    set_number_of_tokens(record, number)


@njit(inline="always")
def _count_record(row, lo, hi, length, record, tally, number):  # type: ignore[no-untyped-def]
    """`_count_range` by way of the context's record."""
    if number_of_tokens(record) < 0:
        _fill_record(row, lo, hi, length, record)
    following, counts = tokens_of(record)
    for i in range(number_of_tokens(record)):
        number = _count(tally, number, following[i], counts[i], row[ORIGIN], length)
    return number


@kernel
def _count_range_but(row, lo, hi, length, tally, number):  # type: ignore[no-untyped-def]
    """Count without the places from SKIP_FROM to SKIP_TO; returns (candidates, places counted, places)."""
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    size = hi - lo
    looks = min(size, SAMPLES)
    skipped = 0
    for i in range(looks):
        place = suffixes[sampled(lo, size, i)]
        if row[SKIP_FROM] <= place < row[SKIP_TO]:
            skipped += 1
        else:
            token = token_at(tokens, place + length)
            number = _count(tally, number, token, 1, row[ORIGIN], length)
    return number, looks - skipped, size - skipped


@njit(inline="always")
def count_sources(cache, table, begin, end, firsts, ranges, context, index, length, seen, tally, number):  # type: ignore[no-untyped-def]
    """Count what follows a context in the sources [begin, end).

    Args:
        cache: address of a cache, see `vllm_dare.drafting.cache`.
        firsts: int64[sources], the longest context that may still occur in each; brought up to date.
        ranges, context, index: see `occurrences`; length: of the context, in tokens.
        seen: places of longer contexts.

    Returns:
        (candidates, places counted, places); no places if there are no more than `seen`.
    """
    size = 0
    for s in range(begin, end):
        if index < firsts[s]:
            continue
        lo, hi = occurrences(cache, table[s], context, index, length, ranges, s)
        if lo == hi:
            firsts[s] = index + 1
        size += hi - lo
    if size <= seen:
        return number, 0, 0
    looks, places = 0, 0
    for s in range(begin, end):
        if index < firsts[s]:
            continue
        lo, hi = ranges[0][s, index], ranges[1][s, index]
        looked, found = min(hi - lo, SAMPLES), hi - lo
        if table[s, SKIP_TO] > 0:
            number, looked, found = _count_range_but(table[s], lo, hi, length, tally, number)
        elif found < WORTH_CACHING:
            number = _count_range(table[s], lo, hi, length, tally, number)
        else:
            key = context_key(context[1], index, index + length, table[s, IDENTITY])
            record = record_of(cache, key)
            if not has_key(record, key):
                write_range(record, key, lo, hi)
            number = _count_record(table[s], lo, hi, length, record, tally, number)
        looks += looked
        places += found
    return number, looks, places


@njit(inline="always")
def count_own(text, own, num_places, length, seen, tally, number):  # type: ignore[no-untyped-def]
    """Count what follows a context in the own text; returns (candidates, places), as `count_sources`.

    Args:
        own: (places, lengths), see `vllm_dare.drafting.own_text.match_own_text`; num_places: how many.
    """
    places, lengths = own
    found = 0
    for i in range(num_places):
        found += lengths[i] >= length
    if found <= seen:
        return number, 0
    for i in range(num_places):
        if lengths[i] >= length:
            number = _count(tally, number, text[places[i]], 1.0, OWN, length)
    return number, found
