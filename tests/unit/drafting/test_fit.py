"""The fit against a pool whose text is known to repeat itself in a certain way."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from vllm_dare.drafting.blend import (
    CURVE_POINTS,
    GLOBAL,
    GROUP,
    NUM_KINDS,
    NUM_LENGTHS,
    NUM_PLACES,
    NUM_TRUST,
    NUM_VARIETIES,
    Blend,
)
from vllm_dare.drafting.cache import make_cache
from vllm_dare.drafting.drafter import Drafter
from vllm_dare.drafting.fit import _fit, _group_segments, _held_out, _steps_of, fit_blend
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.pool import RetrievalPool

VOCAB = 200


def pool_of(texts: list[list[int]], directory: Path, groups: int | None = None) -> RetrievalPool:
    Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB)}, unk_token="0")).save(
        str(directory / "tokenizer.json")
    )
    documents = [
        Document(
            id=str(i),
            token_ids=np.array(text, np.int32),
            group=None if groups is None else f"g{i % groups}",
        )
        for i, text in enumerate(texts)
    ]
    build_pool(documents, str(directory), directory / "pool")
    return RetrievalPool.open(directory / "pool")


def templated(seed: int, number: int, noise: float, length: int = 60) -> list[list[int]]:
    """Texts that follow one another's wording but for a share of tokens."""
    rng = np.random.default_rng(seed)
    wording = rng.integers(1, VOCAB, length)
    texts = np.where(rng.random((number, length)) < noise, rng.integers(1, VOCAB, (number, length)), wording)
    return texts.tolist()  # type: ignore[no-any-return]


def tokens_per_step(drafter: Drafter, texts: list[list[int]]) -> float:
    steps = 0
    sources = drafter.sources(None)
    for text in texts:
        size = 0
        token_ids, batch = np.array([text], dtype=np.int32), drafter.batch([0], [sources])
        while size < len(text):
            accepted = 0
            if size:
                one = np.ones(1, dtype=np.int64)
                drafts = drafter.draft(token_ids, batch, one * size, one * 16)
                chain = drafts.tokens[0, : drafts.lengths[0]].tolist()
                while accepted < len(chain) and chain[accepted : accepted + 1] == text[size + accepted :][:1]:
                    accepted += 1
            size += accepted + 1
            steps += 1
    return sum(map(len, texts)) / steps


def test_a_document_does_not_vouch_for_itself(tmp_path: Path) -> None:
    # Every document is of its own tokens: whatever is found in the pool is wrong, or the document itself.
    rng = np.random.default_rng(0)
    texts = [(rng.permutation(8) + 8 * i + 1).tolist() * 3 for i in range(20)]
    pool = pool_of(texts, tmp_path)
    trust = fit_blend(pool).trust.reshape(NUM_KINDS, NUM_LENGTHS, NUM_PLACES, NUM_VARIETIES)  # type: ignore[union-attr]
    default = Blend.default().trust.reshape(trust.shape)
    assert np.allclose(trust[GLOBAL], default[GLOBAL])  # nothing was ever found elsewhere
    assert not np.allclose(trust[0], default[0])


def test_neither_group_nor_global_segment_vouches_for_a_document_that_both_hold(tmp_path: Path) -> None:
    texts = [[8 * i + j + 1 for j in range(8)] * 3 for i in range(20)]
    pool = pool_of(texts, tmp_path, groups=4)
    documents = list(_held_out(pool, _group_segments(pool), 20))
    fitted = _fit(documents, make_cache(pool.num_tokens), pool)
    trust, default = (b.trust.reshape(NUM_KINDS, -1) for b in (fitted, Blend.default()))
    assert np.allclose(trust[GROUP], default[GROUP])
    assert np.allclose(trust[GLOBAL], default[GLOBAL])


def test_groups_are_asked_where_they_know_better(tmp_path: Path) -> None:
    # All begin alike, and each group goes on in a way of its own, of which the own text says nothing.
    ways = [list(range(10 + 20 * g, 30 + 20 * g)) for g in range(4)]
    texts = [[1, 2, 3, way[0], 1, 2, way[1], 4, 1, 2, *way[2:]] for _ in range(12) for way in ways]
    pool = pool_of(texts, tmp_path, groups=4)
    assert pool.blend.asks_groups
    assert len(Drafter(pool, 16, VOCAB).sources("g1").segments) == 2


def test_groups_that_know_nothing_of_their_own_are_not_asked(tmp_path: Path) -> None:
    texts = templated(4, 120, 0.3)
    (tmp_path / "plain").mkdir()
    pool, plain = pool_of(texts, tmp_path, groups=5), pool_of(texts, tmp_path / "plain")
    assert not pool.blend.asks_groups
    drafter = Drafter(pool, 16, VOCAB)
    assert drafter.sources("g1") is drafter.sources(None)
    # Grouping has cost nothing: all is as if there were no groups.
    assert np.allclose(pool.blend.numbers(), plain.blend.without_groups().numbers())


def test_groups_without_global_text_are_asked(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB)}, unk_token="0")).save(
        str(tmp_path / "tokenizer.json")
    )
    documents = [
        Document(id=str(i), token_ids=np.array(text, np.int32), group=f"g{i % 5}")
        for i, text in enumerate(templated(4, 60, 0.3))
    ]
    build_pool(documents, str(tmp_path), tmp_path / "pool", global_segment=False)
    with RetrievalPool.open(tmp_path / "pool") as pool:
        assert pool.manifest.blend is not None
        assert pool.blend.asks_groups


@given(st.lists(st.booleans(), max_size=80))
def test_steps_are_those_of_a_walk(right: list[bool]) -> None:
    steps, place = 0, 0
    while place < len(right):
        accepted = 0
        while accepted < 16 and place + accepted < len(right) and right[place + accepted]:
            accepted += 1
        place += accepted + 1
        steps += 1
    assert _steps_of(np.array(right, dtype=bool)) == steps


def test_a_fit_drafts_no_worse_and_its_survivals_are_met(tmp_path: Path) -> None:
    texts = templated(1, 160, 0.15)
    pool = pool_of(texts[:100], tmp_path)
    fitted, default = Drafter(pool, 16, VOCAB), Drafter(pool, 16, VOCAB)
    default._numbers = Blend.default().numbers()
    assert pool.manifest.blend is not None
    assert tokens_per_step(fitted, texts[100:]) >= 0.98 * tokens_per_step(default, texts[100:])
    one = np.ones(1, dtype=np.int64)
    predicted, right = 0.0, 0
    for text in texts[100:]:
        token_ids, batch = np.array([text], dtype=np.int32), fitted.batch([0], [fitted.sources(None)])
        for size in range(5, len(text)):
            drafts = fitted.draft(token_ids, batch, one * size, one)
            if drafts.lengths[0]:
                predicted += float(drafts.survivals[0, 0])
                right += drafts.tokens[0, 0] == text[size]
    assert predicted == pytest.approx(right, rel=0.05)


def test_the_same_pool_gives_the_same_fit(tmp_path: Path) -> None:
    pool = pool_of(templated(2, 30, 0.3), tmp_path, groups=3)
    first, second = fit_blend(pool), fit_blend(pool)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.numbers(), second.numbers())
    assert pool.manifest.blend == first.encode()


def test_a_document_that_repeats_itself_more_often_than_is_sampled(tmp_path: Path) -> None:
    blend = fit_blend(pool_of([[1, 2] * 200, [1, 3], [4, 2, 1]], tmp_path))
    assert blend is not None
    assert np.all(np.isfinite(blend.numbers()))


def test_too_little_text_is_not_fitted(tmp_path: Path) -> None:
    pool = pool_of([[1, 2, 3]], tmp_path)
    assert fit_blend(pool) is None
    assert np.array_equal(pool.blend.numbers(), Blend.default().numbers())


def test_what_is_fitted_rises_and_is_a_probability(tmp_path: Path) -> None:
    blend = pool_of(templated(3, 50, 0.5), tmp_path).blend
    assert np.all((blend.trust > 0) & (blend.trust < 1))
    assert np.all(np.diff(blend.curve) >= 0)
    assert blend.curve[0] >= 0
    assert blend.curve[-1] <= 1


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_a_blend_survives_its_encoding(random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    blend = Blend(rng.random(NUM_TRUST), np.sort(rng.random(CURVE_POINTS)))
    assert np.allclose(Blend.decode(blend.encode()).numbers(), blend.numbers(), atol=1e-7)


@pytest.mark.parametrize("text", ["", "AAAA", "nonsense!", Blend.default().encode()[:-8]])
def test_what_is_no_blend_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Blend.decode(text)


def test_numbers_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="blend"):
        Blend.decode(Blend(np.full(NUM_TRUST, np.nan), np.zeros(CURVE_POINTS)).encode())
