"""The chain against a brute-force oracle that knows nothing of suffix arrays."""

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_dare.drafting import chain
from vllm_dare.drafting.blend import (
    CURVE_POINTS,
    NUM_KINDS,
    NUM_LENGTHS,
    NUM_PLACES,
    NUM_VARIETIES,
    Blend,
)
from vllm_dare.drafting.cache import SAMPLES
from vllm_dare.drafting.drafter import Drafter, Drafts, Origin, Sources
from vllm_dare.drafting.own_text import MAX_PLACES
from vllm_dare.pool.segment import SEPARATOR

VOCAB = 5
identities = itertools.count(1)
documents = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=60), min_size=0, max_size=6)
texts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=80)


def segment_of(name: str, corpus: list[list[int]]) -> Any:
    """A segment as the pool has it, built naively."""
    tokens = [token for document in corpus for token in [*document, SEPARATOR]]
    order = sorted((p for p, token in enumerate(tokens) if token >= 0), key=lambda p: tokens[p:])
    heads = sorted({token for token in tokens if token >= 0})
    starts = [sum(tokens[p] < head for p in order) for head in heads] + [len(order)]
    arrays = {
        key: np.array(value, dtype=np.int32)
        for key, value in (
            ("tokens", tokens),
            ("suffix_array", order),
            ("heads", heads),
            ("head_starts", starts),
        )
    }
    return SimpleNamespace(name=name, identity=next(identities), **arrays)


class FakePool:
    """One group "g" and a global segment."""

    blend = Blend.default()

    def __init__(self, group: list[list[int]], overall: list[list[int]]) -> None:
        self.groups = {"g"}
        self._group, self._global = segment_of("group", group), segment_of("global", overall)
        self.num_tokens = sum(map(len, group + overall))

    def group_segments(self, group: str | None) -> tuple[Any, ...]:
        return (self._group,) if group == "g" else ()

    def global_segments(self) -> tuple[Any, ...]:
        return (self._global,)


def draft(
    pool: FakePool | None, text: list[int], limit: int, group: str | None = None, **options: Any
) -> tuple[list[int], list[float]]:
    drafts = draft_once(pool, text, limit, group, **options)
    return drafts.tokens[0, : drafts.lengths[0]].tolist(), drafts.survivals[0, : drafts.lengths[0]].tolist()


def draft_once(
    pool: FakePool | None,
    text: list[int],
    limit: int,
    group: str | None = None,
    *,
    vocab_size: int = VOCAB,
    end: int = -1,
    seed: int = 0,
) -> Drafts:
    drafter = Drafter(pool, limit, vocab_size)  # type: ignore[arg-type]
    token_ids = np.zeros((3, max(200, len(text))), dtype=np.int32)
    token_ids[1, : len(text)] = text
    batch = drafter.batch([1], [drafter.sources(group)], [seed], [end])
    return drafter.draft(token_ids, batch, np.array([len(text)]), np.array([limit]))


def continuations(corpus: list[list[int]], context: list[int]) -> list[int]:
    """What follows each occurrence of a context in the documents, SEPARATOR at a document's end, sorted."""
    size = len(context)
    return sorted(
        [*document, SEPARATOR][end]
        for document in corpus
        for end in range(size, len(document) + 1)
        if document[end - size : end] == context
    )


def sampled(found: list[int]) -> list[int]:
    size, looks = len(found), min(len(found), SAMPLES)
    return found if size == looks else [found[((2 * i + 1) * size) // (2 * looks)] for i in range(looks)]


def own_continuations(text: list[int], context: list[int]) -> list[int]:
    size = len(context)
    ends = [e for e in range(1, len(text)) if text[max(0, e - size) : e] == context]
    return [text[e] for e in reversed(ends)][:MAX_PLACES]


def lookup_lengths(end: int) -> list[int]:
    """The contexts of a text of `end` tokens, longest first."""
    steps = [1] * 4 + [2] * 4 + [4] * 8 + [8] * 16
    return [n for n in range(min(end, 32), 0, -1) if (end - n) % steps[n - 1] == 0]


def row_of_trust(kind: int, length: int, places: int, variety: int) -> int:
    """Places in the table as the doc of `Blend` describes them."""
    row = next(i for i, top in enumerate([*range(1, 9), 12, 16, 24, 32]) if length <= top)
    column = next(i for i, top in enumerate([1, 2, 4, 8, 16, 32, 64, 256, 1024, 10**9]) if places <= top)
    kinds = next(i for i, top in enumerate([1, 2, 4, 8, 16, 10**9]) if variety <= top)
    return int(
        np.ravel_multi_index((kind, row, column, kinds), (NUM_KINDS, NUM_LENGTHS, NUM_PLACES, NUM_VARIETIES))
    )


def scores_after(
    blend: Blend,
    group: list[list[int]],
    overall: list[list[int]],
    text: list[int],
    drafted: list[int],
    has_end: bool,
) -> dict[int, tuple[float, int, int]]:
    """Each candidate's score, and the kind of source and the length that had it first."""
    whole = text + drafted
    found: dict[int, tuple[float, int, int]] = {}
    leftover, seen = 1.0, [0, 0, 0]
    for length in lookup_lengths(len(whole)):
        context = whole[-length:]
        by_kind = (
            own_continuations(text, context),
            continuations(group, context),
            continuations(overall, context),
        )
        for kind, following in enumerate(by_kind):
            looked = following if kind == 0 else sampled(following)
            if not has_end:
                looked = [token for token in looked if token != SEPARATOR]
            if len(following) <= seen[kind] or not looked:
                continue
            seen[kind] = len(following)
            share = leftover * blend.trust[row_of_trust(kind, length, len(following), len(set(looked)))]
            for token, count in Counter(looked).items():  # added up as the kernel does, for equal ties
                score, *first = found.get(token, (0.0, kind, length))
                found[token] = (score + share / len(looked) * count, *first)  # type: ignore[assignment]
            leftover -= share
            best, second = [*sorted((score for score, *_ in found.values()), reverse=True), 0.0][:2]
            if best - second > leftover:
                return found
    return found


def oracle(
    group: list[list[int]], overall: list[list[int]], text: list[int], limit: int, end: int = -1
) -> list[tuple[int, float, int, int]]:
    """(token, survival, kind of source, length of match) of a chain."""
    blend = Blend.default()
    result: list[tuple[int, float, int, int]] = []
    surviving = 1.0
    while len(result) < limit:
        found = scores_after(blend, group, overall, text, [token for token, *_ in result], end >= 0)
        if not found:
            break
        leader = max(found, key=lambda token: found[token][0])
        token = end if leader == SEPARATOR else leader
        if token < 0:
            break
        score, kind, length = found[leader]
        surviving *= np.interp(score, np.linspace(0, 1, CURVE_POINTS), blend.curve)
        if surviving < chain.MIN_SURVIVAL:
            break
        result.append((token, surviving, kind, length))
        if token == end:
            break
    return result


@settings(max_examples=300)
@given(documents, documents, texts, st.integers(1, 12), st.sampled_from([VOCAB - 1, -1]))
@example([[1, 2, 1, 2]], [[1, 0, 1, 0, 2]], [0], 2, VOCAB - 1)  # a tie that rounding could decide
def test_chain_equals_brute_force(
    group: list[list[int]], others: list[list[int]], text: list[int], limit: int, end: int
) -> None:
    overall = group + others
    drafts = draft_once(FakePool(group, overall), text, limit, group="g", end=end)
    size = drafts.lengths[0]
    expected = oracle(group, overall, text, limit, end=end)
    assert drafts.tokens[0, :size].tolist() == [token for token, *_ in expected]
    assert drafts.survivals[0, :size].tolist() == pytest.approx([p for _, p, *_ in expected], rel=1e-5)
    assert drafts.origins[0, :size].tolist() == [kind for *_, kind, _ in expected]
    assert drafts.matches[0, :size].tolist() == [length for *_, length in expected]


@settings(max_examples=50)
@given(documents, texts)
def test_unknown_group_drafts_from_the_global_segment(overall: list[list[int]], text: list[int]) -> None:
    pool = FakePool([[0, 1, 2, 3, 4] * 5], overall)
    assert draft(pool, text, 8, group="nobody") == draft(pool, text, 8, group=None)
    assert draft(pool, text, 8)[0] == [token for token, *_ in oracle([], overall, text, 8)]


def test_long_repeated_document_is_sampled() -> None:
    corpus = [[0, 1] * 2000 + [2]]
    drafted, _ = draft(FakePool([], corpus), [1, 0], 16)
    assert drafted == [1, 0] * 8


def test_frequent_continuation_wins_in_a_large_range() -> None:
    corpus = [[0, 1]] * 70 + [[0, 2]] * 100 + [[0, 3]] * 80
    assert draft(FakePool([], corpus), [0], 1)[0] == [2]


def test_chain_ends_where_documents_end() -> None:
    corpus = [[0, 1, 2], [3, 4]]
    assert draft(FakePool([], corpus), [0], 16)[0] == [1, 2]


def test_a_document_that_ends_does_not_keep_others_from_drafting() -> None:
    corpus = [[0, 1, 2]] * 3 + [[5, 1, 2, 4]]
    assert draft(FakePool([], corpus), [0], 16)[0] == [1, 2, 4]


def test_without_a_pool_the_own_text_drafts() -> None:
    assert draft(None, [3, 1, 4, 1, 2, 0, 3, 1, 4], 4)[0] == [1, 2, 0, 3]
    assert draft(None, [3, 1, 4], 4) == ([], [])


def test_nothing_beyond_the_vocabulary_is_drafted() -> None:
    corpus = [[0, 1, 7, 2]] * 3
    assert draft(FakePool([], corpus), [0], 8, vocab_size=8)[0] == [1, 7, 2]
    assert draft(FakePool([], corpus), [0], 8, vocab_size=5)[0] == [1]


def test_the_end_token_is_drafted_where_documents_end() -> None:
    pool = FakePool([], [[0, 1, 2], [3, 4]])
    assert draft(pool, [0], 16, vocab_size=10, end=9)[0] == [1, 2, 9]
    assert draft(pool, [0], 16, vocab_size=9, end=9)[0] == [1, 2]


def test_a_hopeless_chain_ends() -> None:
    corpus = [[1, 2 + i, 60] for i in range(30)] + [[2 + i, 40 + j] for i in range(30) for j in range(20)]
    drafted, survivals = draft(FakePool([], corpus), [1], 8, vocab_size=100)
    assert 1 <= len(drafted) < 8
    assert all(p >= chain.MIN_SURVIVAL for p in survivals)


def test_long_own_text_is_searched_in_its_window_only() -> None:
    drafter = Drafter(None, 4, 10)
    text = np.zeros((1, 20_000), dtype=np.int32)
    text[0, :3] = [7, 8, 9]
    text[0, -1] = 7
    size, limit = np.array([20_000]), np.array([4])
    drafts = drafter.draft(text, drafter.batch([0], [drafter.sources(None)]), size, limit)
    assert drafts.lengths[0] == 0
    text[0, 15_000:15_003] = [7, 8, 9]
    drafts = drafter.draft(text, drafter.batch([0], [drafter.sources(None)]), size, limit)
    assert drafts.tokens[0, : drafts.lengths[0]].tolist()[:2] == [8, 9]


def test_rotten_suffix_array_never_reads_outside_the_segment() -> None:
    rng = np.random.default_rng(0)
    pool = FakePool([], [rng.integers(0, VOCAB, 300).tolist() for _ in range(3)])
    segment = pool.global_segments()[0]
    for rotten in ("suffix_array", "head_starts"):
        array = getattr(segment, rotten)
        before = array.copy()
        array[:] = rng.integers(-(2**31), 2**31 - 1, array.size)
        drafted, _ = draft(pool, rng.integers(0, VOCAB, 50).tolist(), 16)
        assert all(0 <= token < VOCAB for token in drafted)
        array[:] = before


def draw(pool: FakePool, text: list[int], limit: int, seed: int) -> list[int]:
    drafts = draft_once(pool, text, limit, seed=seed)
    return drafts.tokens[0, : drafts.lengths[0]].tolist()


def test_drawn_chains_repeat_and_differ_by_seed() -> None:
    pool = FakePool([], [[0, 1, 2], [0, 2, 1], [0, 3, 4], [0, 4, 3]] * 3)
    assert draw(pool, [0], 8, seed=0) == draft(pool, [0], 8)[0]
    chains = [tuple(draw(pool, [0], 8, seed)) for seed in range(1, 200)]
    # Behind a document's end a chain goes on as shorter contexts do.
    assert {chain[:2] for chain in chains} == {(1, 2), (2, 1), (3, 4), (4, 3)}
    assert chains == [tuple(draw(pool, [0], 8, seed)) for seed in range(1, 200)]


def test_candidates_are_drawn_in_proportion_to_a_power_of_their_score() -> None:
    pool = FakePool([], [[0, 1]] * 9 + [[0, 2]] * 7)
    drawn = [draw(pool, [0], 1, seed)[0] for seed in range(1, 4001)]
    expected = 9**chain.SHARPNESS / (9**chain.SHARPNESS + 7**chain.SHARPNESS)
    assert drawn.count(1) / len(drawn) == pytest.approx(expected, abs=0.03)


def test_batch_rows_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(1)
    corpus = [rng.integers(0, VOCAB, 100).tolist() for _ in range(5)]
    pool = FakePool(corpus[:2], corpus)
    drafter = Drafter(pool, 8, VOCAB)  # type: ignore[arg-type]
    token_ids = rng.integers(0, VOCAB, (6, 50)).astype(np.int32)
    sizes = rng.integers(1, 50, 6).astype(np.int64)
    limits = np.array([8, 0, 3, 8, -1, 20], dtype=np.int64)
    groups = ["g", None, "g", "unknown", None, "g"]
    batch = drafter.batch(range(6), [drafter.sources(group) for group in groups])
    drafts = drafter.draft(token_ids, batch, sizes, limits)
    for row, group in enumerate(groups):
        limit = int(min(max(limits[row], 0), 8))
        alone = draft(pool, token_ids[row, : sizes[row]].tolist(), limit, group)[0] if limit else []
        assert drafts.tokens[row, : drafts.lengths[row]].tolist() == alone


edits = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.integers(0, VOCAB - 1), max_size=12)), min_size=1, max_size=12
)


@settings(max_examples=200)
@given(documents, documents, texts, edits)
def test_look_ups_that_remember_equal_look_ups_anew(
    group: list[list[int]],
    others: list[list[int]],
    text: list[int],
    history: list[tuple[int, list[int]]],
) -> None:
    pool = FakePool(group, group + others)
    drafter = Drafter(pool, 8, VOCAB)  # type: ignore[arg-type]
    batch = drafter.batch([0], [drafter.sources("g")])
    for taken_back, written in history:
        text = text[: max(1, len(text) - taken_back)] + written
        kept = drafter.draft(np.array([text], np.int32), batch, np.array([len(text)]), np.array([8]))
        assert_same(kept, draft_once(pool, text, 8, "g"))


@settings(max_examples=100)
@given(documents, documents, st.lists(texts, min_size=2, max_size=12))
def test_look_ups_that_profit_from_other_requests_equal_look_ups_anew(
    group: list[list[int]], others: list[list[int]], requests: list[list[int]]
) -> None:
    pool = FakePool(group, group + others)
    drafter = Drafter(pool, 8, VOCAB)  # type: ignore[arg-type]
    for number, text in enumerate(requests):
        name = "g" if number % 3 else None
        batch = drafter.batch([0], [drafter.sources(name)])
        drafts = drafter.draft(np.array([text], np.int32), batch, np.array([len(text)]), np.array([8]))
        assert_same(drafts, draft_once(pool, text, 8, name))


def assert_same(one: Drafts, other: Drafts) -> None:
    """The chains of two batches of one are the same in everything."""
    size = one.lengths[0]
    assert other.lengths[0] == size
    for name in ("tokens", "survivals", "origins", "matches"):
        assert getattr(one, name)[0, :size].tolist() == getattr(other, name)[0, :size].tolist()


def test_a_memory_follows_a_text_longer_than_the_window() -> None:
    rng = np.random.default_rng(2)
    text = rng.integers(0, 50, (1, 20_000)).astype(np.int32)
    drafter = Drafter(None, 4, 50)
    sources = drafter.sources(None)
    remembering = drafter.batch([0], [sources])
    for size in (3, 8_000, 8_191, 8_193, 12_345, 12_346, 20_000):
        call = (np.array([size]), np.array([4]))
        drafts = drafter.draft(text, remembering, *call)
        kept = drafts.tokens[0, : drafts.lengths[0]].tolist()
        drafts = drafter.draft(text, drafter.batch([0], [sources]), *call)
        assert kept == drafts.tokens[0, : drafts.lengths[0]].tolist()


def test_learned_text_counts_as_its_kind_and_is_told_apart() -> None:
    live, pool = segment_of("live", [[0, 1, 2]]), segment_of("pool", [[3, 4, 2]])
    sources = Sources.of((), (pool,), (live,), (segment_of("empty", []),))
    assert len(sources.segments) == 2
    drafter = Drafter(None, 4, VOCAB)
    one = np.ones(1, dtype=np.int64)
    for text, origin in (([0], Origin.LIVE), ([3], Origin.GLOBAL)):
        drafts = drafter.draft(np.array([text], dtype=np.int32), drafter.batch([0], [sources]), one, one)
        assert drafts.origins[0, 0] == origin
