"""Figures of the texts, counted by hand."""

from pathlib import Path

import numpy as np
import pytest

from vllm_dare.evaluation.knowledge import Knowledge, KnowledgeSet
from vllm_dare.evaluation.quality_text import distinct, length_unit, rouge_l, shared, text_figures


def _variant(name: str, texts: list[str], lengths: list[float], unfinished: list[float]) -> Knowledge:
    return Knowledge(name, Path(name), texts, np.array(lengths), np.array(unfinished), None)


def test_distinct_is_different_ngrams_over_all() -> None:
    tokens = ["a", "b", "a", "b", "a"]
    assert distinct(tokens, 1) == 2 / 5
    assert distinct(tokens, 2) == 2 / 4
    assert np.isnan(distinct(["a"], 2))


def test_shared_ngrams_are_those_of_another_text() -> None:
    texts = [text.split() for text in ("a b c", "b c d", "x y", "z")]
    np.testing.assert_array_equal(shared(texts, 2), [1 / 2, 1 / 2, 0, np.nan])


def test_rouge_is_that_of_the_longest_common_subsequence() -> None:
    found = rouge_l(["a b c d", "same words", "a"], ["a c x d e", "same words", "b"])
    precision, recall = 3 / 5, 3 / 4
    assert found[0] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found[1:].tolist() == [1.0, 0.0]


def test_variants_are_compared_document_by_document() -> None:
    base = _variant("base", ["one two three", "a b"], [10, 20], [0, 1])
    other = _variant("other", ["one two four", "a b"], [12, 21], [0, 0])
    vectors = [np.eye(2, dtype=np.float32), np.array([[0.6, 0.8], [0, 1]], np.float32)]
    scores = [np.array([-1.0, -2.0]), np.array([-1.5, np.nan])]
    knowledge = KnowledgeSet(["1", "2"], [base, other], {}, 0)
    first, second = text_figures(knowledge, vectors, scores, lambda what: None)
    assert first["length"].estimate.value == 15.0
    assert first["length"].difference is None and "rouge_l" not in first
    assert second["length"].difference is not None
    assert second["length"].difference.value == 1.5
    assert second["length_ratio"].estimate.value == 33 / 30
    assert second["unfinished"].difference is not None
    assert second["unfinished"].difference.value == -0.5
    assert second["similarity"].estimate.value == pytest.approx(0.8)
    assert second["rouge_l"].estimate.value == pytest.approx((2 / 3 + 1) / 2)
    assert second["log_probability"].estimate.count == 1
    assert second["log_probability"].difference is not None
    assert second["log_probability"].difference.value == -0.5


def test_words_are_counted_where_tokens_are_not_known() -> None:
    base = _variant("base", ["one two three"], [np.nan], [np.nan])
    knowledge = KnowledgeSet(["1"], [base, base], {}, 0)
    vectors = [np.ones((1, 1), np.float32)] * 2
    assert length_unit(knowledge) == "words"
    figures = text_figures(knowledge, vectors, None, lambda what: None)[1]
    assert figures["length"].estimate.value == 3.0
    assert "unfinished" not in figures and "log_probability" not in figures


def test_of_many_documents_some_are_compared_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_dare.evaluation.quality_text._ROUGE_DOCUMENTS", 3)
    base = _variant("base", ["a b"] * 8, [1] * 8, [0] * 8)
    knowledge = KnowledgeSet([str(i) for i in range(8)], [base, base], {}, 0)
    figures = text_figures(knowledge, [np.ones((8, 1), np.float32)] * 2, None, lambda what: None)[1]
    assert figures["rouge_l"].estimate.count == 3
    assert figures["similarity"].estimate.count == 8
