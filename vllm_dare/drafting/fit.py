"""Fitting the blend on a pool's own text, each document left out in its turn.

The documents of a pool stand for the texts to come. Of some of them every token is predicted from what
comes before it and from the rest of the pool; how far contexts are to be trusted is then estimated by
expectation maximization (Jelinek and Mercer, 1980), and how often the leading token is right, given its
blended score, by counting.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.drafting.blend import CURVE_POINTS, GLOBAL, NUM_TRUST, Blend
from vllm_dare.drafting.cache import make_cache
from vllm_dare.drafting.chain import NUM_CONTEXTS, draft_chain
from vllm_dare.drafting.counting import KIND, SKIP_FROM, SKIP_TO
from vllm_dare.drafting.drafter import Sources
from vllm_dare.drafting.scratch import workspace_size
from vllm_dare.pool.kernels import CACHE, array_at, find, int32_array
from vllm_dare.pool.live import LiveRun
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import SEPARATOR, Segment

_MAX_DOCUMENTS = 400
# Of a long document so many first tokens are predicted.
_MAX_TOKENS = 1024
_ROUNDS = 30
# Steps are counted as with drafts of this length.
_CHAIN = 16
# The table and the curve that are there without a fit count as much as this many predictions an entry.
_PRIOR = 3.0
_CURVE_PRIOR = 10.0


@dataclass(frozen=True, eq=False)
class _Held:
    """A document that is predicted without itself.

    Attributes:
        tokens: int32[n], with the separator that ends it.
        sources: what predicts it; in their table its own places are marked to be skipped.
        table: int64[sources, SOURCE_COLUMNS].
    """

    tokens: npt.NDArray[np.int32]
    sources: Sources
    table: npt.NDArray[np.int64]


def fit_blend(pool: RetrievalPool, max_documents: int = _MAX_DOCUMENTS) -> Blend | None:
    """Fit on at most so many documents, evenly spaced; some seconds, whatever the size of the pool.

    A pool with groups and global text is fitted with its groups, and as if it had none, and documents of the
    groups are replayed with both: groups are asked only if that spares target-model steps.

    Returns:
        The blend; None for a pool of fewer than two documents. The same pool always gives the same.
    """
    cache = make_cache(pool.num_tokens)
    grouped = list(_held_out(pool, _group_segments(pool), max_documents))
    overall = list(_held_out(pool, [(None, name) for name in pool.manifest.global_segments], max_documents))
    if len(grouped) < 2 or len(overall) < 2:
        documents = max(grouped, overall, key=len)
        return _fit(documents, cache, pool) if len(documents) > 1 else None
    without, blend = _fit(overall, cache, pool).without_groups(), _fit(grouped, cache, pool)
    alone = [_without_group(document, pool.global_segments()) for document in grouped]
    helps = _spares(_steps(grouped, cache, blend, pool), _steps(alone, cache, without, pool))
    return blend if helps else without


def _group_segments(pool: RetrievalPool) -> list[tuple[str | None, str]]:
    return [(group, name) for group, names in pool.manifest.groups.items() for name in names]


def _fit(documents: Sequence[_Held], cache: npt.NDArray[np.int64], pool: RetrievalPool) -> Blend:
    default, vocab_size = Blend.default(), pool.tokenizer.vocab_size
    traces = [_trace(document, cache, default) for document in documents]
    places = np.concatenate([places for places, _ in traces])
    shares = np.concatenate([shares for _, shares in traces])
    trust = _estimate_trust(places, shares, default.trust, vocab_size)
    as_they_are = Blend(trust, np.linspace(0.0, 1.0, CURVE_POINTS))  # a curve that leaves scores alone
    guesses = [_guess(document, cache, as_they_are, vocab_size) for document in documents]
    scores = np.concatenate([scores[known] for scores, known, _ in guesses])
    right = np.concatenate([right[known] for _, known, right in guesses])
    return Blend(trust, _estimate_curve(scores, right, default.curve))


def _without_group(document: _Held, overall: tuple[Segment, ...]) -> _Held:
    table = document.table[document.table[:, KIND] == GLOBAL]
    return _Held(document.tokens, Sources.of(overall=overall), np.ascontiguousarray(table))


def _spares(steps: npt.NDArray[np.int64], steps_without: npt.NDArray[np.int64]) -> bool:
    """Whether something spares steps, by more than the standard error over documents."""
    spared = steps_without - steps
    return bool(spared.mean() > spared.std() / np.sqrt(len(spared)))


def _steps(
    documents: Sequence[_Held], cache: npt.NDArray[np.int64], blend: Blend, pool: RetrievalPool
) -> npt.NDArray[np.int64]:
    """int64[documents], the target-model steps that each takes with drafts of `_CHAIN` tokens."""
    guesses = [_guess(document, cache, blend, pool.tokenizer.vocab_size) for document in documents]
    return np.array([_steps_of(right) for _, _, right in guesses])


def _steps_of(right: npt.NDArray[np.bool_]) -> int:
    """The steps of a text, by where the leading token is right."""
    wrong = np.append(np.flatnonzero(~right), len(right))
    steps = place = 0
    while place < len(right):
        accepted = int(wrong[np.searchsorted(wrong, place)]) - place
        place += min(accepted, _CHAIN) + 1
        steps += 1
    return steps


def _held_out(
    pool: RetrievalPool, segments: Sequence[tuple[str | None, str]], max_documents: int
) -> Iterator[_Held]:
    """Documents of these segments, each with the group that it is to be predicted with."""
    ends = list(accumulate(pool.manifest.segments[name].num_documents for _, name in segments))
    if not ends or ends[-1] < 2:
        return
    overall = pool.global_segments()
    searched = None
    for number in np.unique(np.linspace(0, ends[-1] - 1, min(max_documents, ends[-1])).astype(int)):
        index = bisect_right(ends, number)
        group, name = segments[index]
        mates = pool.group_segments(group)
        home = next(segment for segment in (*mates, *overall) if segment.name == name)
        at = int(number) - (ends[index - 1] if index else 0)
        if home is not searched:
            searched, breaks = home, np.flatnonzero(home.tokens == SEPARATOR)
        begin, end = (int(breaks[at - 1]) + 1 if at else 0), int(breaks[at]) + 1
        tokens = np.array(home.tokens[begin:end])
        sources = Sources.of(mates, overall)
        table = sources.table.copy()
        for row, segment in zip(table, sources.segments, strict=True):
            row[SKIP_FROM], row[SKIP_TO] = (begin, end) if segment is home else _place(row, segment, tokens)
        yield _Held(tokens, sources, table)


def _place(
    row: npt.NDArray[np.int64], segment: Segment | LiveRun, tokens: npt.NDArray[np.int32]
) -> tuple[int, int]:
    """Where a segment holds a document (one of them, if it holds several); (0, 0) if it does not."""
    lo, hi = find(row, tokens, 0, len(tokens)) if len(tokens) > 1 else (0, 0)
    for position in segment.suffix_array[lo:hi].tolist():
        if position == 0 or segment.tokens[position - 1] == SEPARATOR:
            return position, position + len(tokens)
    return 0, 0


@njit(cache=CACHE, nogil=True)
def _predict(workspace, memory, cache, table, numbers, text, vocab_size, trace, places, shares):  # type: ignore[no-untyped-def]
    """Predict every token of a text but the first.

    Args:
        trace: float64[rows, 2]; with rows, the contexts of each position go to `places` and `shares`, see
            `_trace`. Without, the leading token's number and score do: int32 and float32 [positions, 1].
    """
    draft = np.empty(1, np.int32)
    survival = np.empty(1, np.float32)
    origin = np.empty(1, np.int8)
    match = np.empty(1, np.int16)
    for size in range(1, text.size):
        found = draft_chain(
            workspace.ctypes.data,
            memory.ctypes.data,
            cache.ctypes.data,
            array_at(table.ctypes.data, table.shape, np.int64),
            array_at(numbers.ctypes.data, numbers.shape, np.float64),
            int32_array(text.ctypes.data, text.size),
            size,
            1,
            0,
            vocab_size,
            vocab_size + 1,
            draft,
            survival,
            origin,
            match,
            text[size],
            trace,
        )
        for i in range(found):
            places[size - 1, i] = int(trace[i, 0]) if trace.shape[0] > 0 else draft[0]
            shares[size - 1, i] = trace[i, 1] if trace.shape[0] > 0 else survival[0]


def _run(
    document: _Held,
    cache: npt.NDArray[np.int64],
    blend: Blend,
    vocab_size: int,
    trace: npt.NDArray[np.float64],
    width: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    text = document.tokens[:_MAX_TOKENS]
    places = np.full((len(text) - 1, width), -1, dtype=np.int32)
    shares = np.zeros((len(text) - 1, width), dtype=np.float32)
    num_sources = len(document.table)
    workspace = np.empty(workspace_size(num_sources, 1), dtype=np.int64)
    memory = document.sources.memory().words
    numbers = blend.numbers()
    _predict(workspace, memory, cache, document.table, numbers, text, vocab_size, trace, places, shares)
    return places, shares


def _trace(
    document: _Held, cache: npt.NDArray[np.int64], blend: Blend
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """For each token but the first, all contexts before it.

    Returns:
        int32[n - 1, NUM_CONTEXTS], places in the trust table, longest context first, -1 after the last;
        and float32[n - 1, NUM_CONTEXTS], the share of the token among what followed each.
    """
    return _run(document, cache, blend, 0, np.zeros((NUM_CONTEXTS, 2)), NUM_CONTEXTS)


def _guess(
    document: _Held, cache: npt.NDArray[np.int64], blend: Blend, vocab_size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """For each token but the first: the leading token's score, whether there is one, and if it is right."""
    guessed, scores = _run(document, cache, blend, vocab_size, np.zeros((0, 2)), 1)
    # A document's end is guessed as the token beyond the vocabulary.
    actual = np.where(document.tokens[:_MAX_TOKENS] == SEPARATOR, vocab_size, document.tokens[:_MAX_TOKENS])[
        1:
    ]
    return scores[:, 0], guessed[:, 0] >= 0, guessed[:, 0] == actual


def _estimate_trust(
    places: npt.NDArray[np.int32],
    shares: npt.NDArray[np.float32],
    prior: npt.NDArray[np.float64],
    vocab_size: int,
) -> npt.NDArray[np.float64]:
    """The trust that makes the tokens likeliest; what no context claims is spread over the vocabulary."""
    trust = prior
    for _ in range(_ROUNDS):
        chosen, reached = np.zeros(NUM_TRUST), np.zeros(NUM_TRUST)
        _expect(places, shares, trust, 1.0 / vocab_size, chosen, reached)
        trust = (chosen + _PRIOR * prior) / (reached + _PRIOR)
    return np.clip(trust, 1e-4, 1.0 - 1e-4)


@njit(cache=CACHE, nogil=True)
def _expect(places, shares, trust, unclaimed, chosen, reached):  # type: ignore[no-untyped-def]
    """One expectation step over all predictions.

    Args:
        places, shares: see `_trace`.
        unclaimed: the probability of a token that no context claims.
        chosen, reached: float64[NUM_TRUST], receive how often each entry is expected to have given the
            token, and how often no longer context did.
    """
    joint = np.empty(places.shape[1])
    for position in range(places.shape[0]):
        left, total, number = 1.0, 0.0, 0
        while number < places.shape[1] and places[position, number] >= 0:
            taken = trust[places[position, number]]
            joint[number] = left * taken * shares[position, number]
            total += joint[number]
            left *= 1.0 - taken
            number += 1
        total += left * unclaimed
        reaching = left * unclaimed / total
        for i in range(number - 1, -1, -1):
            reaching += joint[i] / total
            chosen[places[position, i]] += joint[i] / total
            reached[places[position, i]] += reaching


def _estimate_curve(
    scores: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], prior: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """How often tokens of about the score of each point of the curve are right; never falling."""
    place = np.clip(scores.astype(np.float64), 0.0, 1.0) * (CURVE_POINTS - 1)
    low = np.minimum(place.astype(int), CURVE_POINTS - 2)
    weight = place - low
    hits, looks = _CURVE_PRIOR * prior, np.full(CURVE_POINTS, _CURVE_PRIOR)
    for index, part in ((low, 1.0 - weight), (low + 1, weight)):
        looks += np.bincount(index, part, CURVE_POINTS)
        hits += np.bincount(index, part * right, CURVE_POINTS)
    return np.maximum.accumulate(hits / looks)
