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
from vllm_dare.drafting.contexts import MAX_MATCH, is_context, longest_match
from vllm_dare.drafting.counting import KIND, SOURCE_COLUMNS, count_own, count_sources
from vllm_dare.drafting.own_text import WINDOW, match_own_text
from vllm_dare.drafting.scratch import add_to_context, copy_ranges, memory_arrays, recall, workspace_arrays
from vllm_dare.pool.kernels import (
    NUM_TOKENS,
    array_at,
    int32_array,
    int64_array,
    kernel,
)
from vllm_dare.pool.segment import SEPARATOR

# A chain that is drawn takes each candidate in proportion to this power of its score. Measured on sampled
# texts with relaxed verification: always the best one made texts 11 % shorter (12.1 tokens per step), since
# relaxing then settles on the commonest wording; power 1 kept the length but drafted 7.8 tokens per step.
SHARPNESS = 3.0
# A chain ends before the first token that survives with less probability: such tokens are hardly ever right
# (0.1 % fewer tokens per step) and the slowest to find. Not so drawn ones: a relaxed rule keeps many more.
MIN_SURVIVAL = 0.003
# At most this many contexts are looked up at a position: ten lengths in every kind of source.
NUM_CONTEXTS = 10 * NUM_KINDS


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
def _forget_end(tally, number):  # type: ignore[no-untyped-def]
    """Drop what was counted for the end of documents; returns how much that was."""
    for c in range(number):
        if tally[0][c] == SEPARATOR:
            forgotten = int(tally[1][c])
            tally[1][c] = 0.0
            return forgotten
    return 0


@njit(inline="always")
def _weigh(  # type: ignore[no-untyped-def]  # noqa: PLR0912
    cache,
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
    has_end,
    actual,
    trace,
):
    """Blend the tokens that may follow context[:end] into `tally`; returns (candidates, trace rows).

    Args:
        has_end: whether the end of documents is among the tokens that may follow. Without it, the places
            where a document ends count for nothing: of a pruned pool most are no ends of texts.
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
                number, places = count_own(text, own, num_places, length, seen[kind], tally, number)
                looks = places
            else:
                first = 0 if kind == GROUP else num_group
                last = num_group if kind == GROUP else table.shape[0]
                number, looks, places = count_sources(
                    cache,
                    table,
                    first,
                    last,
                    firsts,
                    ranges,
                    context,
                    index,
                    length,
                    seen[kind],
                    tally,
                    number,
                )
            if not has_end:
                looks -= _forget_end(tally, number)
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


@kernel
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


@kernel
def draft_chain(  # type: ignore[no-untyped-def]
    workspace,
    memory,
    cache,
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
        cache: address of a cache, see `vllm_dare.drafting.cache`.
        table: int64[sources, SOURCE_COLUMNS], groups before global ones.
        numbers: float64[any], see `Blend.numbers`.
        text: int32[...], the request's own text; size: its length in tokens, at least 1. From one call to
            the next with the same memory it may grow, or end otherwise, but not change further back.
        limit: at most this many draft tokens.
        seed: 0 drafts the likeliest token at every position, which is best where the target decides alone.
            Any other number draws among the candidates, each seed in its own way: where a relaxed rule lets
            drafts decide wording, always the likeliest would give all texts the commonest one.
        end_token: drafted, as the chain's last, where documents end; below 0 none is, and chains go on as
            other documents do.
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
    ranges, firsts, own, tally, context, seen = workspace_arrays(workspace, num_sources, limit)
    recalled = memory_arrays(memory, num_sources)
    _, _, slots, previous, rings = recalled
    trust = numbers[:NUM_TRUST]
    curve = numbers[NUM_TRUST:]
    known = min(size, MAX_MATCH)
    base = size - known
    context[1][0] = 0
    for i in range(known):
        add_to_context(context, i, text[base + i])
    recall(recalled, text, size, known)
    copy_ranges(rings, ranges, base, known, False)
    for s in range(num_sources):
        firsts[s] = (
            longest_match(cache, table[s], context, base, known, ranges, s)
            if table[s, NUM_TOKENS] > 0
            else known + limit
        )
    begin = max(0, size - WINDOW)
    surviving = 1.0
    for i in range(limit):
        end = known + i
        num_places = match_own_text(
            text, begin, size, slots, previous, context[0], end, MAX_MATCH, own[0], own[1]
        )
        number, traced = _weigh(
            cache,
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
            end_token >= 0,
            actual,
            trace,
        )
        if i == 0:
            copy_ranges(rings, ranges, base, known, True)
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
        add_to_context(context, end, token)
        for s in range(num_sources):
            ranges[2][s, end] = 0
    return limit


# Where `draft_batch` finds what it works on: words of a table of int64.
(
    BATCH,
    WIDTH,
    VOCAB_SIZE,
    WORKSPACE,
    RECORDS,
    NUMBERS,
    TEXTS,
    TEXT_BYTES,
    ROWS,
    SIZES,
    LIMITS,
    SEEDS,
    ENDS,
    TABLES,
    NUM_SOURCES,
    MEMORIES,
    DRAFTS,
    SURVIVALS,
    LENGTHS,
    ORIGINS,
    MATCHES,
) = range(21)
NUM_ARGUMENTS = 21


@kernel
def draft_batch(address):  # type: ignore[no-untyped-def]
    """`draft_chain` for a whole batch in one call that holds no interpreter lock.

    One address is handed over, as numba takes longer to unpack twenty arrays than to draft a short chain.

    Args:
        address: of int64[NUM_ARGUMENTS]: the number of requests B, the width K of the results, the
            vocabulary's size, and these addresses:
            WORKSPACE, of `workspace_size(sources, K)` words of scratch memory; RECORDS, of a cache;
            NUMBERS, see `Blend.numbers`; TEXTS, int32, of the first text, each further one TEXT_BYTES on;
            ROWS, int64[B], which text is whose; SIZES, int64[B], their lengths in tokens;
            LIMITS, int64[B], the longest chain, at most K, 0 or less for none; SEEDS, int64[B], and ENDS,
            int32[B], see `draft_chain`; TABLES, int64[B], addresses of the requests' tables, and
            NUM_SOURCES, int64[B], how many sources each has; MEMORIES, int64[B], addresses of their memories;
            DRAFTS, int32[B, K], SURVIVALS, float32[B, K], LENGTHS, int64[B], ORIGINS, int8[B, K], and
            MATCHES, int16[B, K], which receive the results.
    """
    arguments = int64_array(address, NUM_ARGUMENTS)
    batch, width = arguments[BATCH], arguments[WIDTH]
    rows, sizes = int64_array(arguments[ROWS], batch), int64_array(arguments[SIZES], batch)
    limits, seeds = int64_array(arguments[LIMITS], batch), int64_array(arguments[SEEDS], batch)
    ends = int32_array(arguments[ENDS], batch)
    tables, num_sources = int64_array(arguments[TABLES], batch), int64_array(arguments[NUM_SOURCES], batch)
    memories, lengths = int64_array(arguments[MEMORIES], batch), int64_array(arguments[LENGTHS], batch)
    trace = array_at(address, (0, 2), np.float64)
    for b in range(batch):
        lengths[b] = 0
        if limits[b] <= 0 or sizes[b] <= 0:
            continue
        lengths[b] = draft_chain(
            arguments[WORKSPACE],
            memories[b],
            arguments[RECORDS],
            array_at(tables[b], (num_sources[b], SOURCE_COLUMNS), np.int64),
            array_at(arguments[NUMBERS], (NUM_TRUST + CURVE_POINTS,), np.float64),
            int32_array(arguments[TEXTS] + rows[b] * arguments[TEXT_BYTES], sizes[b]),
            sizes[b],
            min(limits[b], width),
            seeds[b],
            ends[b],
            arguments[VOCAB_SIZE],
            int32_array(arguments[DRAFTS] + 4 * b * width, width),
            array_at(arguments[SURVIVALS] + 4 * b * width, (width,), np.float32),
            array_at(arguments[ORIGINS] + b * width, (width,), np.int8),
            array_at(arguments[MATCHES] + 2 * b * width, (width,), np.int16),
            np.int32(SEPARATOR),
            trace,
        )
