"""One chain of draft tokens from several sources, each token with its survival probability.

At every draft position the continuations of all match lengths are blended, longest first, as in
Witten-Bell interpolation (Bell, Cleary, Witten, "Text Compression", 1990): a context seen N times
with T different continuations gets the share N / (N + DISCOUNT * T) of the probability that longer
contexts left over. Group, global and own text are counted together at each length. As soon as the leading
token cannot be overtaken any more, shorter contexts are not looked at, which makes most positions cost one
look. Ties go to the token that was counted first, so a chain is a pure function of its inputs.

Measured by replay on LLM-written user knowledge this drafts 7 % more tokens per step than scoring the
longest match alone.
"""

import numpy as np
from numba import njit

from vllm_dare.drafting.own_text import MAX_PLACES, SLOTS, WINDOW, index_own_text, match_own_text
from vllm_dare.pool.kernels import (
    NUM_SUFFIXES,
    NUM_TOKENS,
    SUFFIXES,
    TOKENS,
    find,
    int32_array,
    narrow,
    token_at,
)

# Context lengths tried at the first draft position; later positions add the lengths in between.
LADDER = np.array([32, 24, 16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1], dtype=np.int64)
MAX_MATCH = 32
# A range of more places than this is read at this many evenly spaced ones. The range is sorted by
# continuation, so they are a stratified sample: frequent continuations are met in proportion.
SAMPLES = 32
# How strongly variety of continuations takes trust from a context (1 is Witten-Bell's own).
DISCOUNT = 3.0
# One occurrence in the request's own text counts as much as this many in the pool.
OWN_WEIGHT = 64.0
# At most this many different continuations are told apart at one position.
MAX_CANDIDATES = 128


@njit(cache=True, nogil=True)
def _count(tokens, counts, number, token, amount):  # type: ignore[no-untyped-def]
    """Add `amount` to a candidate's count; returns the number of candidates."""
    for i in range(number):
        if tokens[i] == token:
            counts[i] += amount
            return number
    if number == MAX_CANDIDATES:
        return number
    tokens[number] = token
    counts[number] = amount
    return number + 1


@njit(cache=True, nogil=True)
def _count_range(row, lo, hi, offset, weight, candidates, counts, number):  # type: ignore[no-untyped-def]
    """Count the tokens at `offset` of the suffixes [lo, hi); returns (number of candidates, total counted)."""
    tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
    suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
    size = hi - lo
    looks = min(size, SAMPLES)
    run_token = token_at(tokens, suffixes[lo] + offset) if looks == size else np.int32(0)
    run = 0
    for i in range(looks):
        index = lo + i if looks == size else lo + ((2 * i + 1) * size) // (2 * looks)
        token = token_at(tokens, suffixes[index] + offset)
        if run > 0 and token != run_token:
            number = _count(candidates, counts, number, run_token, run * weight)
            run = 0
        run_token = token
        run += 1
    number = _count(candidates, counts, number, run_token, run * weight)
    return number, looks * weight


@njit(cache=True, nogil=True)
def _search_longest(row, context, starts, num_starts, size, lows, highs, depths):  # type: ignore[no-untyped-def]
    """Find the ranges of the longest contexts that occur in a segment, by bisection over the ladder.

    If a context occurs, so does every shorter one. Fills lows/highs/depths (one segment's int64[num_starts]
    columns) for the contexts it looked at; the longer ones that cannot occur are marked as empty.
    """
    left, right = 0, num_starts
    while left < right:
        middle = (left + right) >> 1
        lows[middle], highs[middle] = find(row, context, starts[middle], size - starts[middle])
        depths[middle] = size - starts[middle]
        if highs[middle] > lows[middle]:
            right = middle
        else:
            left = middle + 1
    for i in range(left):
        lows[i], highs[i], depths[i] = 0, 0, size - starts[i]


@njit(cache=True, nogil=True)
def _advance(row, context, start, length, lows, highs, depths, index):  # type: ignore[no-untyped-def]
    """Bring range `index` of one segment up to context[start:start+length]; returns (lo, hi)."""
    depth = depths[index]
    if depth == 0:
        lows[index], highs[index] = find(row, context, start, length)
    elif depth < length and highs[index] > lows[index]:
        tokens = int32_array(row[TOKENS], row[NUM_TOKENS])
        suffixes = int32_array(row[SUFFIXES], row[NUM_SUFFIXES])
        lows[index], highs[index] = narrow(
            tokens, suffixes, lows[index], highs[index], depth, context, start + depth, length - depth
        )
    depths[index] = length
    return lows[index], highs[index]


@njit(cache=True, nogil=True)
def draft_chain(table, sources, weights, text, size, limit, vocab_size, min_survival, draft, survival):  # type: ignore[no-untyped-def]
    """Draft the tokens that are likely to follow text[:size].

    Args:
        table: int64[segments, NUM_COLUMNS], see `vllm_dare.pool.kernels.segment_row`.
        sources: int64[sources], rows of `table`; negative ones are skipped.
        weights: float64[sources], what one occurrence in a source counts.
        text: int32[...], the request's own text; size: its length in tokens.
        limit: at most this many draft tokens.
        vocab_size: ids from here on are never drafted.
        min_survival: the chain ends before the first token that survives with less probability.
        draft: int32[>= limit], receives the chain.
        survival: float32[>= limit], receives the estimated probability that the chain is right up to and
            including each token.

    Returns:
        The number of tokens drafted; 0 if nothing is known. A chain ends where documents end.
    """
    num_sources = sources.size
    known = min(size, MAX_MATCH)
    context = np.empty(MAX_MATCH + limit, np.int32)
    context[:known] = text[size - known : size]
    starts = np.empty(LADDER.size + limit, np.int64)
    num_starts = 0
    for length in LADDER:
        if length <= known:
            starts[num_starts] = known - length
            num_starts += 1
    lows = np.zeros((num_sources, starts.size), np.int64)
    highs = np.zeros((num_sources, starts.size), np.int64)
    depths = np.zeros((num_sources, starts.size), np.int64)
    for s in range(num_sources):
        if sources[s] >= 0:
            _search_longest(
                table[sources[s]], context, starts, num_starts, known, lows[s], highs[s], depths[s]
            )

    begin = max(0, size - WINDOW)
    slots = np.empty(SLOTS, np.int64)
    previous = np.empty(size - begin, np.int64)
    index_own_text(text, begin, size, slots, previous)
    places = np.empty(MAX_PLACES, np.int64)
    lengths = np.empty(MAX_PLACES, np.int64)

    candidates = np.empty(MAX_CANDIDATES, np.int32)
    counts = np.empty(MAX_CANDIDATES, np.float64)
    scores = np.empty(MAX_CANDIDATES, np.float64)
    surviving = 1.0
    for i in range(limit):
        num_places = match_own_text(
            text, begin, size, slots, previous, context, known + i, MAX_MATCH, places, lengths
        )
        number = 0
        scored = 0
        leftover = 1.0
        for a in range(num_starts):
            length = known + i - starts[a]
            counts[:number] = 0.0
            total = 0.0
            for s in range(num_sources):
                if sources[s] < 0:
                    continue
                row = table[sources[s]]
                lo, hi = _advance(row, context, starts[a], length, lows[s], highs[s], depths[s], a)
                if hi > lo:
                    number, counted = _count_range(
                        row, lo, hi, length, weights[s], candidates, counts, number
                    )
                    total += counted
            for j in range(num_places):
                if lengths[j] >= length:
                    number = _count(candidates, counts, number, text[places[j]], OWN_WEIGHT)
                    total += OWN_WEIGHT
            if total == 0.0:
                continue
            scores[scored:number] = 0.0
            scored = number
            kinds = 0
            for c in range(number):
                if counts[c] > 0.0:
                    kinds += 1
            share = leftover / (total + DISCOUNT * kinds)
            best, second = 0.0, 0.0
            for c in range(number):
                scores[c] += share * counts[c]
                if scores[c] > best:
                    best, second = scores[c], best
                elif scores[c] > second:
                    second = scores[c]
            leftover = share * DISCOUNT * kinds
            if best - second > leftover:
                break
        if number == 0:
            return i
        leader = np.argmax(scores[:number])
        token = candidates[leader]
        surviving *= scores[leader]
        # A separator as the leader means that documents end here.
        if token < 0 or token >= vocab_size or surviving < min_survival:
            return i
        draft[i] = token
        survival[i] = surviving
        context[known + i] = token
        starts[num_starts] = known + i
        num_starts += 1
    return limit


@njit(cache=True, nogil=True)
def draft_batch(  # type: ignore[no-untyped-def]
    table,
    sources,
    weights,
    token_ids,
    rows,
    sizes,
    limits,
    vocab_size,
    min_survival,
    drafts,
    survivals,
    lengths,
):
    """`draft_chain` for a whole batch in one call that holds no interpreter lock.

    Args:
        sources: int64[batch, sources] and weights: float64[batch, sources], as in `draft_chain`.
        token_ids: int32[rows, max_model_len], the requests' texts; rows: int64[batch], which of them;
            sizes: int64[batch], their lengths.
        limits: int64[batch]; 0 skips a request.
        drafts: int32[batch, K], survivals: float32[batch, K], lengths: int64[batch]: the results.
    """
    for b in range(rows.size):
        lengths[b] = 0
        if limits[b] > 0 and sizes[b] > 0:
            lengths[b] = draft_chain(
                table,
                sources[b],
                weights[b],
                token_ids[rows[b]],
                sizes[b],
                limits[b],
                vocab_size,
                min_survival,
                drafts[b],
                survivals[b],
            )
