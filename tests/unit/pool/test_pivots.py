import numpy as np
import pytest

from vllm_dare.pool.pivots import (
    CONTEXT,
    decode,
    encode,
    explained_shares,
    find_pivots,
    hash_contexts,
)

VOCAB = 60


def hash_of(*tokens: int) -> int:
    return int(hash_contexts(np.array([tokens], dtype=np.int64))[0])


def documents(number: int = 200) -> list[np.ndarray]:
    """Token 10 or 11 (after 1 2 3) decides which of two vocabularies the rest is written in; 20 or 21 (after
    4 5 6) decides nothing."""
    random = np.random.default_rng(1)
    texts = []
    for _ in range(number):
        plan, word = random.integers(0, 2, 2)
        rest = 30 + 12 * plan + random.integers(0, 12, 60)
        texts.append(np.array([1, 2, 3, 10 + plan, 4, 5, 6, 20 + word, *rest], dtype=np.int32))
    return texts


def test_a_choice_that_decides_the_rest_is_a_pivot_and_wording_is_not() -> None:
    pivots = find_pivots(documents(), VOCAB)
    assert hash_of(1, 2, 3) in pivots
    assert hash_of(4, 5, 6) not in pivots
    assert (np.diff(pivots.astype(object)) > 0).all()
    assert np.array_equal(pivots, find_pivots(documents(), VOCAB))


def test_the_first_token_of_a_text_can_be_a_pivot() -> None:
    texts = [text[3:] for text in documents()]
    assert hash_of(-1, -1, -1) in find_pivots(texts, VOCAB)


def test_pools_without_enough_text_have_none() -> None:
    assert len(find_pivots([], VOCAB)) == 0
    assert len(find_pivots(documents(1), VOCAB)) == 0
    assert len(find_pivots([np.zeros(0, np.int32)] * 3, VOCAB)) == 0
    assert len(find_pivots([np.arange(20, dtype=np.int32)] * 9, VOCAB)) == 0


def test_explained_shares_equal_the_textbook() -> None:
    """Omega squared, written out: (SSB - (k - 1) MSW) / (SST + MSW)."""
    random = np.random.default_rng(2)
    contexts = random.integers(0, 6, 400).astype(np.uint64)
    choices = random.integers(0, 9, 400) ** 2 // 9
    following = random.normal(size=(400, 5)) + choices[:, None] * (contexts[:, None] % 3)
    expected = {}
    for context in range(6):
        groups = [following[(contexts == context) & (choices == choice)] for choice in np.unique(choices)]
        groups = [group for group in groups if len(group) >= 3]
        everything = np.concatenate(groups)
        mean = everything.mean(axis=0)
        total = ((everything - mean) ** 2).sum()
        between = sum(len(group) * ((group.mean(axis=0) - mean) ** 2).sum() for group in groups)
        within = (total - between) / (len(everything) - len(groups))
        expected[context] = (between - (len(groups) - 1) * within) / (total + within)
    got = dict(explained_shares(contexts, choices, following))
    assert got == pytest.approx(expected)
    assert max(got.values()) > 0.3
    assert min(got.values()) < 0.1


def test_more_text_than_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_dare.pool.pivots._MAX_TOKENS", 7000)
    assert hash_of(1, 2, 3) in find_pivots(documents(400), VOCAB)


def test_hashes_tell_contexts_apart() -> None:
    random = np.random.default_rng(3)
    contexts = np.unique(random.integers(-1, 150_000, (20_000, CONTEXT)), axis=0)
    assert len(np.unique(hash_contexts(contexts))) == len(contexts)
    assert hash_of(1, 2, 3) != hash_of(3, 2, 1)


def test_pivots_as_text() -> None:
    pivots = find_pivots(documents(), VOCAB)
    assert np.array_equal(decode(encode(pivots)), pivots)
    assert len(decode("")) == 0
    for damaged in ("AAA", "AAAA", "not base64!", encode(pivots[::-1]) if len(pivots) > 1 else "AAAA"):
        with pytest.raises(ValueError):
            decode(damaged)
