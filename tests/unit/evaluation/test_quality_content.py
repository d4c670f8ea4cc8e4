"""What is said of agreement and of being right, against scikit-learn and counting by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, jaccard_score

from vllm_dare.evaluation.attributes import Stated
from vllm_dare.evaluation.interactions import Interactions, Items
from vllm_dare.evaluation.quality_content import attribute_records, content_figures, read_history

VALUES = ["Action", "Comedy", "Drama", "War"]


def _random(seed: int, documents: int = 60) -> Stated:
    sets = np.random.default_rng(seed).random((documents, len(VALUES))) < (0.8, 0.5, 0.3, 0.0)
    return Stated(sets, np.where(sets.any(axis=1), sets.argmax(axis=1), -1))


def test_agreement_on_each_value_is_scikit_learns() -> None:
    one, two = _random(1), _random(2)
    records = attribute_records(VALUES, one, two)
    for i, record in enumerate(records[:3]):
        a, b = one.sets[:, i], two.sets[:, i]
        assert record["agreement"]["value"] == pytest.approx((a == b).mean())
        assert record["kappa"]["value"] == pytest.approx(cohen_kappa_score(a, b))
        assert record["kappa"]["low"] < record["kappa"]["value"] < record["kappa"]["high"]
        assert (record["baseline_stated"], record["stated"]) == (a.mean(), b.mean())
    assert records[3]["agreement"]["value"] == 1.0
    assert records[3]["kappa"] is None, "nobody states it, so chance explains all"


def test_sets_of_stated_values_are_compared_as_scikit_learn_does() -> None:
    one, two = _random(1), _random(2)
    figures = content_figures(one, two, None, is_baseline=False)
    options = {"average": "samples", "zero_division": 1.0}
    assert figures["jaccard"].estimate.value == pytest.approx(jaccard_score(one.sets, two.sets, **options))
    assert figures["f1"].estimate.value == pytest.approx(f1_score(one.sets, two.sets, **options))
    assert figures["agreement"].estimate.value == pytest.approx((one.sets == two.sets).mean())
    assert figures["first_agreement"].estimate.value == pytest.approx((one.first == two.first).mean())
    difference = figures["stated"].difference
    assert difference is not None
    assert difference.value == pytest.approx((two.sets.sum() - one.sets.sum()) / 60)
    assert "precision" not in figures


def test_the_same_statements_agree_fully_and_differ_by_nothing() -> None:
    one = _random(1)
    figures = content_figures(one, one, None, is_baseline=False)
    for name in ("agreement", "jaccard", "f1", "first_agreement"):
        found = figures[name].estimate
        assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


ITEMS = Items(["a", "b", "c", "d"], ["Action", "Comedy", "Drama"], np.eye(4, 3, dtype=bool))
# Document 0 liked two action films and a comedy, 1 a drama, 2 nothing; other users four comedies.
HISTORY = Interactions(
    users=np.array([0, 0, 0, 1, 1, 2, -1, -1, -1, -1]),
    items=np.array([0, 0, 1, 2, 0, 0, 1, 1, 1, 1]),
    labels=np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1], float),
    times=None,
)


def test_history_is_what_was_liked_more_than_by_all() -> None:
    history = read_history(HISTORY, ITEMS, ["comedies", "Action", "Drama", "Poetry"], 3)
    nan = np.nan
    np.testing.assert_allclose(history.shares, [[1 / 3, 2 / 3, 0, nan], [0, 0, 1, nan], [nan] * 4])
    # over all: 5 of 8 are comedies, 2 of 8 action, 1 of 8 drama
    np.testing.assert_array_equal(history.right, [[0, 1, 0, nan], [0, 0, 1, nan], [nan] * 4])


def test_precision_counts_what_is_stated() -> None:
    values = ["Comedy", "Action", "Drama", "Poetry"]
    history = read_history(HISTORY, ITEMS, values, 3)
    base = Stated(np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]], bool), np.zeros(3, int))
    other = Stated(np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool), np.zeros(3, int))
    own = content_figures(base, base, history, is_baseline=True)
    assert own["precision"].estimate.value == pytest.approx(2 / 3)
    assert own["precision"].estimate.count == 2, "the third user liked nothing"
    assert own["history_share"].estimate.value == pytest.approx((1 / 3 + 2 / 3 + 1) / 3)
    assert own["precision"].difference is None
    figures = content_figures(base, other, history, is_baseline=False)
    assert figures["precision"].estimate.value == pytest.approx(1 / 2)
    assert figures["precision"].difference is not None
    assert figures["precision"].difference.value == pytest.approx(1 / 2 - 2 / 3)
    same = content_figures(base, base, history, is_baseline=False)["history_share"].difference
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
