"""The chain against a brute-force oracle that knows nothing of suffix arrays."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.drafting import chain
from vllm_dare.drafting.drafter import Drafter
from vllm_dare.pool.segment import SEPARATOR

VOCAB = 5
documents = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=60), min_size=0, max_size=6)
texts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=80)


def segment_of(name: str, corpus: list[list[int]]) -> Any:
    """A segment as the pool has it, built naively."""
    tokens = [token for document in corpus for token in [*document, SEPARATOR]]
    order = sorted((p for p, token in enumerate(tokens) if token >= 0), key=lambda p: tokens[p:])
    heads = sorted({token for token in tokens if token >= 0})
    starts = [sum(tokens[p] < head for p in order) for head in heads] + [len(order)]
    array = {
        key: np.array(value, dtype=np.int32)
        for key, value in (
            ("tokens", tokens),
            ("suffix_array", order),
            ("heads", heads),
            ("head_starts", starts),
        )
    }
    return SimpleNamespace(name=name, **array)


class FakePool:
    """One group "g" and a global segment."""

    def __init__(self, group: list[list[int]], overall: list[list[int]]) -> None:
        self.groups = {"g"}
        self._group, self._global = segment_of("group", group), segment_of("global", overall)

    def group_segments(self, group: str | None) -> tuple[Any, ...]:
        return (self._group,) if group == "g" else ()

    def global_segments(self) -> tuple[Any, ...]:
        return (self._global,)


def draft(
    pool: FakePool | None, text: list[int], limit: int, group: str | None = None, **options: Any
) -> tuple[list[int], list[float]]:
    drafter = Drafter(pool, limit, options.pop("vocab_size", VOCAB), **options)  # type: ignore[arg-type]
    token_ids = np.zeros((3, 200), dtype=np.int32)
    token_ids[1, : len(text)] = text
    one = np.ones(1, dtype=np.int64)
    drafts, survivals, lengths = drafter.draft(
        token_ids, one, one * len(text), one * limit, [drafter.sources(group)]
    )
    return drafts[0, : lengths[0]].tolist(), survivals[0, : lengths[0]].tolist()


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
    size, looks = len(found), min(len(found), chain.SAMPLES)
    return found if size == looks else [found[((2 * i + 1) * size) // (2 * looks)] for i in range(looks)]


def own_continuations(text: list[int], context: list[int]) -> list[int]:
    size = len(context)
    ends = [e for e in range(1, len(text)) if text[max(0, e - size) : e] == context]
    return [text[e] for e in reversed(ends)][: chain.MAX_PLACES]


def oracle(
    corpora: list[list[list[int]]], text: list[int], limit: int, vocab_size: int = VOCAB
) -> tuple[list[int], list[float]]:
    known = text[-chain.MAX_MATCH :]
    starts = [len(known) - length for length in chain.LADDER if length <= len(known)]
    context, drafted, survivals, surviving = list(known), [], [], 1.0
    for _ in range(limit):
        scores: dict[int, float] = {}
        leftover = 1.0
        for start in starts:
            counts: dict[int, float] = {}
            for corpus in corpora:
                for token in sampled(continuations(corpus, context[start:])):
                    counts[token] = counts.get(token, 0.0) + 1.0
            for token in own_continuations(text, context[start:]):
                counts[token] = counts.get(token, 0.0) + chain.OWN_WEIGHT
            if not counts:
                continue
            share = leftover / (sum(counts.values()) + chain.DISCOUNT * len(counts))
            for token, count in counts.items():
                scores[token] = scores.get(token, 0.0) + share * count
            leftover = share * chain.DISCOUNT * len(counts)
            best, second = [*sorted(scores.values(), reverse=True), 0.0][:2]
            if best - second > leftover:
                break
        leader = max(scores, key=scores.__getitem__, default=SEPARATOR)
        if leader < 0 or leader >= vocab_size:
            break
        surviving *= scores[leader]
        drafted.append(leader)
        survivals.append(surviving)
        starts.append(len(context))
        context.append(leader)
    return drafted, survivals


@settings(max_examples=300, deadline=None)
@given(documents, documents, texts, st.integers(1, 12))
def test_chain_equals_brute_force(
    group: list[list[int]], others: list[list[int]], text: list[int], limit: int
) -> None:
    overall = group + others
    drafted, survivals = draft(FakePool(group, overall), text, limit, group="g")
    expected, expected_survivals = oracle([group, overall], text, limit)
    assert drafted == expected
    assert survivals == pytest.approx(expected_survivals, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(documents, texts)
def test_unknown_group_drafts_from_the_global_segment(overall: list[list[int]], text: list[int]) -> None:
    pool = FakePool([[0, 1, 2, 3, 4] * 5], overall)
    assert draft(pool, text, 8, group="nobody") == draft(pool, text, 8, group=None)
    assert draft(pool, text, 8, group=None)[0] == oracle([overall], text, 8)[0]


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


def test_without_a_pool_the_own_text_drafts() -> None:
    assert draft(None, [3, 1, 4, 1, 2, 0, 3, 1, 4], 4)[0] == [1, 2, 0, 3]
    assert draft(None, [3, 1, 4], 4) == ([], [])


def test_nothing_beyond_the_vocabulary_is_drafted() -> None:
    corpus = [[0, 1, 7, 2]] * 3
    assert draft(FakePool([], corpus), [0], 8, vocab_size=8)[0] == [1, 7, 2]
    assert draft(FakePool([], corpus), [0], 8, vocab_size=5)[0] == [1]


def test_min_survival_cuts_the_chain() -> None:
    corpus = [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 2]]
    drafted, survivals = draft(FakePool([], corpus), [0], 8)
    assert drafted == [1, 2]
    cut = (survivals[0] + survivals[1]) / 2
    assert draft(FakePool([], corpus), [0], 8, min_survival=cut)[0] == [1]


def test_long_own_text_is_searched_in_its_window_only() -> None:
    drafter = Drafter(None, 4, 10)
    text = np.zeros((1, 20_000), dtype=np.int32)
    text[0, :3] = [7, 8, 9]
    text[0, -1] = 7
    one = np.ones(1, dtype=np.int64)
    _, _, lengths = drafter.draft(text, one - 1, one * 20_000, one * 4, [drafter.sources(None)])
    assert lengths[0] == 0
    text[0, 15_000:15_003] = [7, 8, 9]
    drafts, _, lengths = drafter.draft(text, one - 1, one * 20_000, one * 4, [drafter.sources(None)])
    assert drafts[0, : lengths[0]].tolist()[:2] == [8, 9]


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
    drafter = Drafter(pool, limit, VOCAB)  # type: ignore[arg-type]
    one = np.ones(1, dtype=np.int64)
    drafts, _, lengths = drafter.draft(
        np.array([text], dtype=np.int32),
        one - 1,
        one * len(text),
        one * limit,
        [drafter.sources(None)],
        one * seed,
    )
    return drafts[0, : lengths[0]].tolist()


def test_drawn_chains_repeat_and_differ_by_seed() -> None:
    pool = FakePool([], [[0, 1, 2], [0, 2, 1], [0, 3, 4], [0, 4, 3]] * 3)
    assert draw(pool, [0], 8, seed=0) == draft(pool, [0], 8)[0]
    chains = [tuple(draw(pool, [0], 8, seed)) for seed in range(1, 200)]
    # Shorter contexts count too, so that now and then a document's end is drawn early.
    assert (
        {(1, 2), (2, 1), (3, 4), (4, 3)}
        <= set(chains)
        <= {(1, 2), (2, 1), (3, 4), (4, 3), (1,), (2,), (3,), (4,)}
    )
    assert chains == [tuple(draw(pool, [0], 8, seed)) for seed in range(1, 200)]


def test_candidates_are_drawn_in_proportion_to_a_power_of_their_score() -> None:
    pool = FakePool([], [[0, 1]] * 20 + [[0, 2]] * 15)
    drawn = [draw(pool, [0], 1, seed)[0] for seed in range(1, 4001)]
    expected = 20**chain.SHARPNESS / (20**chain.SHARPNESS + 15**chain.SHARPNESS)
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
    drafts, _, lengths = drafter.draft(
        token_ids, np.arange(6, dtype=np.int64), sizes, limits, [drafter.sources(group) for group in groups]
    )
    for row, group in enumerate(groups):
        limit = int(min(max(limits[row], 0), 8))
        alone = draft(pool, token_ids[row, : sizes[row]].tolist(), limit, group)[0] if limit else []
        assert drafts[row, : lengths[row]].tolist() == alone
