"""One chain of draft tokens from several sources, each token with its survival probability.

At every draft position the continuations of all contexts are blended, longest first: each context gives
the tokens that followed it in the own text, in the group's and in the global segments their share of the
probability that longer ones left over (see `blend`). A context that occurs nowhere but where a longer one
did says nothing new and is passed over. As soon as the leading token cannot be overtaken any more, shorter
contexts are not looked at, which makes most positions cost one look. Ties go to the token that was counted
first, so a chain is a pure function of its inputs.
"""

import numpy as np
from numba import njit

from vllm_dare.drafting.blend import (
    CURVE_POINTS,
    GROUP,
    NUM_KINDS,
    NUM_LENGTHS,
    NUM_PLACES,
    NUM_TRUST,
    NUM_VARIETIES,
    OWN,
)
from vllm_dare.drafting.contexts import MAX_MATCH, is_context, longest_match, occurrences
from vllm_dare.drafting.own_text import MAX_PLACES, SLOTS, WINDOW, index_own_text, match_own_text
from vllm_dare.pool.kernels import (
    CACHE,
    NUM_COLUMNS,
    NUM_SUFFIXES,
    NUM_TOKENS,
    SUFFIXES,
    TOKENS,
    float64_array,
    int32_array,
    int64_array,
    token_at,
)
from vllm_dare.pool.segment import SEPARATOR

# Columns of a source's row, after those of its segment (`segment_row`): its kind, see `blend`; what its
# tokens are reported to come from; and places in it that do not count, from and up to (for leave-one-out).
KIND, ORIGIN, SKIP_FROM, SKIP_TO = range(NUM_COLUMNS, NUM_COLUMNS + 4)
SOURCE_COLUMNS = NUM_COLUMNS + 4

# A range of more places than this is read at this many evenly spaced ones. The range is sorted by
# continuation, so they are a stratified sample: frequent continuations are met in proportion.
SAMPLES = 64
# A chain that is drawn takes each candidate in proportion to this power of its score. Measured on sampled
# texts with relaxed verification: always the best one made texts 11 % shorter (12.1 tokens per step), since
# relaxing then settles on the commonest wording; power 1 kept the length but drafted 7.8 tokens per step.
SHARPNESS = 3.0
# A chain ends before the first token that survives with less probability: such tokens are hardly ever right
# (0.1 % fewer tokens per step) and the slowest to find. Not so drawn ones: a relaxed rule keeps many more.
MIN_SURVIVAL = 0.003
# At most this many different continuations are told apart at one position.
MAX_CANDIDATES = 128

_HEADER = 2  # words of a memory before its arrays: the text's length, and whether it was ever used
# At most this many contexts are looked up at a position: ten lengths in every kind of source.
NUM_CONTEXTS = 10 * NUM_KINDS


def memory_size(num_sources: int) -> int:
    """How many int64 words a request's memory has; zeros are an empty one.

    It holds, of the text at its last look-up: its length, its last MAX_MATCH tokens, the index of the own
    text, and for each source the ranges of the contexts at its last MAX_MATCH positions, modulo MAX_MATCH.
    """
    return _HEADER + (MAX_MATCH + SLOTS + WINDOW) // 2 + 3 * MAX_MATCH * num_sources


def workspace_size(num_sources: int, limit: int) -> int:
    """How many int64 words of scratch memory a chain of at most `limit` tokens needs."""
    room = MAX_MATCH + limit
    return 3 * num_sources * room + num_sources + 2 * MAX_PLACES + 4 * MAX_CANDIDATES + room + 3 * NUM_KINDS


@njit(inline="always")
def _memory(address, num_sources):  # type: ignore[no-untyped-def]
    """The arrays of a memory, see `memory_size`: (header, tail, slots, previous, rings)."""
    header = int64_array(address, _HEADER)
    address += 8 * _HEADER
    tail = int32_array(address, MAX_MATCH)
    address += 4 * MAX_MATCH
    slots = int32_array(address, SLOTS)
    address += 4 * SLOTS
    previous = int32_array(address, WINDOW)
    address += 4 * WINDOW
    rings = int64_array(address, 3 * num_sources * MAX_MATCH).reshape((3, num_sources, MAX_MATCH))
    return header, tail, slots, previous, rings


@njit(inline="always")
def _workspace(address, num_sources, limit):  # type: ignore[no-untyped-def]
    """Scratch arrays for one chain in the `workspace_size` words at an address.

    Returns:
        ranges: (lows, highs, depths), int64[num_sources, MAX_MATCH + limit] each, see `occurrences`.
        firsts: int64[num_sources], the longest context of each source that may still occur.
        own: (places, lengths), see `match_own_text`.
        tally: (candidates, counts, scores, origins, matches), of the tokens that may come next.
        context: int32[MAX_MATCH + limit].
        seen: int64[NUM_KINDS], places of the longer contexts.
    """
    room = MAX_MATCH + limit
    cells = num_sources * room
    lows = int64_array(address, cells).reshape((num_sources, room))
    address += 8 * cells
    highs = int64_array(address, cells).reshape((num_sources, room))
    address += 8 * cells
    depths = int64_array(address, cells).reshape((num_sources, room))
    address += 8 * cells
    firsts = int64_array(address, num_sources)
    address += 8 * num_sources
    places = int64_array(address, MAX_PLACES)
    address += 8 * MAX_PLACES
    lengths = int64_array(address, MAX_PLACES)
    address += 8 * MAX_PLACES
    counts = float64_array(address, MAX_CANDIDATES)
    address += 8 * MAX_CANDIDATES
    scores = float64_array(address, MAX_CANDIDATES)
    address += 8 * MAX_CANDIDATES
    seen = int64_array(address, NUM_KINDS)
    address += 8 * NUM_KINDS
    candidates = int32_array(address, MAX_CANDIDATES)
    address += 4 * MAX_CANDIDATES
    origins = int32_array(address, MAX_CANDIDATES)
    address += 4 * MAX_CANDIDATES
    matches = int32_array(address, MAX_CANDIDATES)
    address += 4 * MAX_CANDIDATES
    context = int32_array(address, room)
    tally = (candidates, counts, scores, origins, matches)
    return (lows, highs, depths), firsts, (places, lengths), tally, context, seen


@njit(cache=CACHE, nogil=True)
def _recall(memory, text, size, known):  # type: ignore[no-untyped-def]
    """Bring a memory up to text[:size]; what it held of another text is forgotten."""
    header, tail, slots, previous, rings = memory
    before = header[0]
    kept = header[1] == 1 and before <= size
    if kept:
        for position in range(max(0, before - MAX_MATCH), before):
            if tail[position & (MAX_MATCH - 1)] != text[position]:
                kept = False
                break
    if not kept:
        before = 0
        slots[:] = -1
    begin = max(0, size - WINDOW)
    index_own_text(text, max(before, begin), size, slots, previous)
    for position in range(max(before, size - known), size):
        slot = position & (MAX_MATCH - 1)
        tail[slot] = text[position]
        for s in range(rings.shape[1]):
            rings[2, s, slot] = 0
    header[0] = size
    header[1] = 1


@njit(inline="always")
def _copy_ranges(rings, ranges, base, known, back):  # type: ignore[no-untyped-def]
    """From a memory's rings, by position modulo MAX_MATCH, to a chain's ranges, by position from `base`, or
    back.
    """
    for s in range(rings.shape[1]):
        for kind in range(3):
            for i in range(known):
                slot = (base + i) & (MAX_MATCH - 1)
                if back:
                    rings[kind, s, slot] = ranges[kind][s, i]
                else:
                    ranges[kind][s, i] = rings[kind, s, slot]


@njit(cache=CACHE, nogil=True)
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


@njit(inline="always")
def _look(tokens, suffixes, lo, size, looks, i, length):  # type: ignore[no-untyped-def]
    """The token that follows at the i-th of `looks` places of the range [lo, lo + size)."""
    index = lo + i if looks == size else lo + ((2 * i + 1) * size) // (2 * looks)
    return token_at(tokens, suffixes[index] + length)


@njit(cache=CACHE, nogil=True)
def _run_end(tokens, suffixes, lo, size, looks, i, length, token):  # type: ignore[no-untyped-def]
    """The first look after the i-th that does not find `token`; the range is sorted by what follows."""
    last = looks - 1
    if _look(tokens, suffixes, lo, size, looks, last, length) == token:
        return looks
    step = 1
    while i + step < last and _look(tokens, suffixes, lo, size, looks, i + step, length) == token:
        i += step
        step *= 2
    last = min(i + step, last)
    while last - i > 1:
        middle = (i + last) >> 1
        if _look(tokens, suffixes, lo, size, looks, middle, length) == token:
            i = middle
        else:
            last = middle
    return last


@njit(inline="always")
def _count_range(row, lo, hi, length, tally, number):  # type: ignore[no-untyped-def]
    """Count the tokens after the suffixes [lo, hi); returns (candidates, places counted, places)."""
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    size = hi - lo
    looks = min(size, SAMPLES)
    i = 0
    while i < looks:
        token = _look(tokens, suffixes, lo, size, looks, i, length)
        end = _run_end(tokens, suffixes, lo, size, looks, i, length, token)
        number = _count(tally, number, token, end - i, row[ORIGIN], length)
        i = end
    return number, looks, size


@njit(cache=CACHE, nogil=True)
def _count_range_but(row, lo, hi, length, tally, number):  # type: ignore[no-untyped-def]
    """`_count_range` without the places from SKIP_FROM to SKIP_TO."""
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    size = hi - lo
    looks = min(size, SAMPLES)
    skipped = 0
    for i in range(looks):
        index = lo + i if looks == size else lo + ((2 * i + 1) * size) // (2 * looks)
        if row[SKIP_FROM] <= suffixes[index] < row[SKIP_TO]:
            skipped += 1
        else:
            token = token_at(tokens, suffixes[index] + length)
            number = _count(tally, number, token, 1, row[ORIGIN], length)
    return number, looks - skipped, size - skipped


@njit(inline="always")
def _count_sources(table, begin, end, firsts, ranges, context, index, length, seen, tally, number):  # type: ignore[no-untyped-def]
    """Count what follows a context in the sources [begin, end).

    Returns:
        (candidates, places counted, places); no places if there are no more than `seen`.
    """
    size = 0
    for s in range(begin, end):
        if index < firsts[s]:
            continue
        lo, hi = occurrences(table[s], context, index, length, ranges, s, index)
        if lo == hi:
            firsts[s] = index + 1
        size += hi - lo
    if size <= seen:
        return number, 0, 0
    looks, places = 0, 0
    for s in range(begin, end):
        if index >= firsts[s]:
            lo, hi = ranges[0][s, index], ranges[1][s, index]
            if table[s, SKIP_TO] > 0:
                number, looked, found = _count_range_but(table[s], lo, hi, length, tally, number)
            else:
                number, looked, found = _count_range(table[s], lo, hi, length, tally, number)
            looks += looked
            places += found
    return number, looks, places


@njit(inline="always")
def _count_own(text, own, num_places, length, seen, tally, number):  # type: ignore[no-untyped-def]
    """Count what follows a context in the own text; returns (candidates, places), as `_count_sources`."""
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


@njit(inline="always")
def trust_index(kind, length, places, variety):  # type: ignore[no-untyped-def]
    """The place in the trust table for a context.

    Args:
        kind: OWN, GROUP or GLOBAL; length: of the context, 1 to 32 tokens.
        places: how often it occurs, at least 1; variety: with how many different continuations, at least 1.
    """
    if length <= 8:
        row = length - 1
    elif length <= 12:
        row = 8
    elif length <= 16:
        row = 9
    else:
        row = 10 if length <= 24 else 11
    return ((kind * NUM_LENGTHS + row) * NUM_PLACES + _places_column(places)) * NUM_VARIETIES + min(
        _doublings(variety), NUM_VARIETIES - 1
    )


@njit(inline="always")
def _doublings(number):  # type: ignore[no-untyped-def]
    """1, 2, 3-4, 5-8, 9-16, … as 0, 1, 2, 3, 4, …"""
    doublings = 0
    number -= 1
    while number > 0:
        number >>= 1
        doublings += 1
    return doublings


@njit(inline="always")
def _places_column(places):  # type: ignore[no-untyped-def]
    if places <= 64:
        return _doublings(places)
    if places <= 256:
        return 7
    return 8 if places <= 1024 else 9


@njit(inline="always")
def _blend(trust, kind, length, looks, places, tally, number, leftover):  # type: ignore[no-untyped-def]
    """Give one context its share of the probability that longer contexts left over, and clear the counts.

    Returns:
        (what is left over now, lead of the best candidate over the second, index into the trust table).
    """
    _, counts, scores, _, _ = tally
    variety = 0
    for c in range(number):
        variety += counts[c] > 0.0
    index = trust_index(kind, length, places, variety)
    share = leftover * trust[index]
    each = share / looks
    best, second = 0.0, 0.0
    for c in range(number):
        scores[c] += each * counts[c]
        counts[c] = 0.0
        if scores[c] > best:
            best, second = scores[c], best
        elif scores[c] > second:
            second = scores[c]
    return leftover - share, best - second, index


@njit(inline="always")
def _weigh(  # type: ignore[no-untyped-def]  # noqa: PLR0912
    table, trust, text, context, base, end, ranges, firsts, own, num_places, tally, seen, actual, trace
):
    """Blend the tokens that may follow context[:end] into `tally`; returns (candidates, trace rows).

    Args:
        actual, trace: with float64[rows, 2] of more than no rows, all contexts are blended, and of each the
            index into the trust table and the share of the token `actual` are put down.
    """
    counts = tally[1]
    num_group = 0
    longest = 0
    for i in range(num_places):
        longest = max(longest, own[1][i])
    begin = end - longest
    for s in range(table.shape[0]):
        num_group += table[s, KIND] == GROUP
        begin = min(begin, firsts[s])
    seen[:] = 0
    number, traced = 0, 0
    leftover = 1.0
    for index in range(begin, end):
        length = end - index
        if not is_context(base + index, length):
            continue
        for kind in range(NUM_KINDS):
            if kind == OWN:
                number, places = _count_own(text, own, num_places, length, seen[kind], tally, number)
                looks = places
            else:
                first = 0 if kind == GROUP else num_group
                last = num_group if kind == GROUP else table.shape[0]
                number, looks, places = _count_sources(
                    table, first, last, firsts, ranges, context, index, length, seen[kind], tally, number
                )
            if places <= seen[kind] or looks == 0:
                counts[:number] = 0.0
                continue
            seen[kind] = places
            if traced < trace.shape[0]:
                share = 0.0
                for c in range(number):
                    if tally[0][c] == actual:
                        share = counts[c] / looks
                trace[traced, 1] = share
            leftover, lead, where = _blend(trust, kind, length, looks, places, tally, number, leftover)
            if traced < trace.shape[0]:
                trace[traced, 0] = where
                traced += 1
            elif lead > leftover:
                return number, traced
    return number, traced


@njit(inline="always")
def _choose(scores, number, point):  # type: ignore[no-untyped-def]
    """The best candidate, or with a point in [0, 1) the one whose share of the scores it falls into."""
    if point < 0.0:
        leader = 0
        for c in range(1, number):
            if scores[c] > scores[leader]:
                leader = c
        return leader
    total = 0.0
    for c in range(number):
        total += scores[c] ** SHARPNESS
    reached = 0.0
    for c in range(number):
        reached += scores[c] ** SHARPNESS
        if point * total < reached:
            return c
    return number - 1


@njit(cache=CACHE, nogil=True)
def _point(seed, position):  # type: ignore[no-untyped-def]
    """A number in [0, 1) for each position of a text (splitmix64); -1 for seed 0, which draws nothing."""
    if seed == 0:
        return -1.0
    z = np.uint64(seed) + np.uint64(position) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(inline="always")
def _probability(curve, score):  # type: ignore[no-untyped-def]
    """The curve at a score, between its points in a straight line."""
    place = min(max(score, 0.0), 1.0) * (CURVE_POINTS - 1)
    low = min(int(place), CURVE_POINTS - 2)
    return curve[low] + (place - low) * (curve[low + 1] - curve[low])


@njit(cache=CACHE, nogil=True)
def draft_chain(  # type: ignore[no-untyped-def]
    workspace,
    memory,
    table,
    numbers,
    text,
    size,
    limit,
    seed,
    end_token,
    vocab_size,
    draft,
    survival,
    origin,
    match,
    actual,
    trace,
):
    """Draft the tokens that are likely to follow text[:size].

    Args:
        workspace: address of `workspace_size` int64 words that nothing else uses meanwhile.
        memory: address of the request's `memory_size` words. What they know of earlier steps is used where
            the text still begins with the earlier one, and renewed.
        table: int64[sources, SOURCE_COLUMNS], groups before global ones.
        numbers: float64[any], see `Blend.numbers`.
        text: int32[...], the request's own text; size: its length in tokens, at least 1. From one call to
            the next with the same memory it may grow, or end otherwise, but not change further back.
        limit: at most this many draft tokens.
        seed: 0 drafts the likeliest token at every position, which is best where the target decides alone.
            Any other number draws among the candidates, each seed in its own way: where a relaxed rule lets
            drafts decide wording, always the likeliest would give all texts the commonest one.
        end_token: drafted, as the chain's last, where documents end; below 0 the chain ends before it.
        vocab_size: ids from here on are never drafted.
        draft: int32[>= limit], receives the chain.
        survival: float32[>= limit], receives the estimated probability that the chain is right up to and
            including each token.
        origin: int8[>= limit], receives what source each token came from; match: int16[>= limit], the
            length of the longest context that it was found after.
        actual, trace: for fitting, see `_weigh`; a trace without rows otherwise.

    Returns:
        The number of tokens drafted, 0 if nothing is known; with a trace its rows.
    """
    num_sources = table.shape[0]
    ranges, firsts, own, tally, context, seen = _workspace(workspace, num_sources, limit)
    recalled = _memory(memory, num_sources)
    _, _, slots, previous, rings = recalled
    trust = numbers[:NUM_TRUST]
    curve = numbers[NUM_TRUST:]
    known = min(size, MAX_MATCH)
    base = size - known
    for i in range(known):
        context[i] = text[base + i]
    _recall(recalled, text, size, known)
    _copy_ranges(rings, ranges, base, known, False)
    for s in range(num_sources):
        firsts[s] = (
            longest_match(table[s], context, base, known, ranges, s)
            if table[s, NUM_TOKENS] > 0
            else known + limit
        )
    begin = max(0, size - WINDOW)
    surviving = 1.0
    for i in range(limit):
        end = known + i
        num_places = match_own_text(
            text, begin, size, slots, previous, context, end, MAX_MATCH, own[0], own[1]
        )
        number, traced = _weigh(
            table,
            trust,
            text,
            context,
            base,
            end,
            ranges,
            firsts,
            own,
            num_places,
            tally,
            seen,
            actual,
            trace,
        )
        if i == 0:
            _copy_ranges(rings, ranges, base, known, True)
        if trace.shape[0] > 0:
            return traced
        if number == 0:
            return i
        chosen = _choose(tally[2], number, _point(seed, size + i))
        token = tally[0][chosen]
        if token == SEPARATOR:
            token = np.int32(end_token)
        if token < 0 or token >= vocab_size:
            return i
        surviving *= _probability(curve, tally[2][chosen])
        if seed == 0 and surviving < MIN_SURVIVAL:
            return i
        draft[i] = token
        survival[i] = surviving
        origin[i] = tally[3][chosen]
        match[i] = tally[4][chosen]
        if token == end_token:
            return i + 1
        context[end] = token
        for s in range(num_sources):
            ranges[2][s, end] = 0
    return limit


@njit(cache=CACHE, nogil=True)
def draft_batch(  # type: ignore[no-untyped-def]
    workspace,
    memories,
    tables,
    widths,
    numbers,
    token_ids,
    rows,
    sizes,
    limits,
    seeds,
    ends,
    vocab_size,
    drafts,
    survivals,
    lengths,
    origins,
    matches,
):
    """`draft_chain` for a whole batch in one call that holds no interpreter lock.

    Args:
        workspace: int64[workspace_size(sources, longest limit)], scratch memory.
        memories: int64[batch], addresses of the requests' memories, each of `memory_size` words.
        tables: int64[batch], addresses of the requests' tables, see `draft_chain`; widths: int64[batch], how
            many sources each has.
        numbers: float64[any], see `Blend.numbers`.
        token_ids: int32[rows, max_model_len], the requests' texts; rows: int64[batch], which of them;
            sizes: int64[batch], their lengths.
        limits: int64[batch]; 0 or less skips a request. seeds: int64[batch] and ends: int32[batch], see
            `draft_chain`.
        drafts: int32[batch, K], survivals: float32[batch, K], lengths: int64[batch], origins: int8[batch, K],
            matches: int16[batch, K]: the results.
    """
    trace = np.empty((0, 2))
    for b in range(rows.size):
        lengths[b] = 0
        if limits[b] <= 0 or sizes[b] <= 0:
            continue
        table = int64_array(tables[b], widths[b] * SOURCE_COLUMNS)
        lengths[b] = draft_chain(
            workspace.ctypes.data,
            memories[b],
            table.reshape((widths[b], SOURCE_COLUMNS)),
            float64_array(numbers.ctypes.data, numbers.size),
            int32_array(token_ids[rows[b]].ctypes.data, sizes[b]),
            sizes[b],
            limits[b],
            seeds[b],
            ends[b],
            vocab_size,
            drafts[b],
            survivals[b],
            origins[b],
            matches[b],
            np.int32(SEPARATOR),
            trace,
        )
