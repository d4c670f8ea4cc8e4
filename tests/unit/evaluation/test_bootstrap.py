"""Intervals against theory, a brute-force oracle and scipy."""

import numpy as np
import pytest
from scipy import stats

from vllm_dare.evaluation.bootstrap import Estimate, draws, estimate, mean, mean_figure, ratio


def test_a_mean_and_its_interval_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=80)
    found = mean(values)
    peer = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found is not None
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.02)
    assert found.count == 80
    assert found.width == pytest.approx(found.high - found.low)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        found = mean(generator.normal(5, 2, size=60))
        assert found is not None
        covered += found.low <= 5 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_statistic_is_resampled_as_a_loop_would() -> None:
    above, below = np.arange(1.0, 8), np.arange(3.0, 10)
    counts = np.concatenate(list(draws(7)))
    found = ratio(above, below)
    loop = [sum(np.repeat(above, row.astype(int))) / sum(np.repeat(below, row.astype(int))) for row in counts]
    assert found is not None
    assert found.value == above.sum() / below.sum()
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(loop, (0.025, 0.975))))


def test_every_draw_has_as_many_documents_and_repeats_itself() -> None:
    first, again = (np.concatenate(list(draws(1000, 50))) for _ in range(2))
    assert (first.sum(axis=1) == 1000).all()
    assert (first == again).all()


def test_documents_without_a_value_are_left_out() -> None:
    found = mean(np.array([1.0, np.nan, 3.0]))
    assert found is not None
    assert (found.value, found.count) == (2.0, 2)
    assert mean(np.array([np.nan])) is None
    assert mean(np.array([])) is None


def test_a_statistic_without_a_value_is_none() -> None:
    assert ratio(np.zeros(3), np.zeros(3)) is None
    assert estimate(lambda total: total * np.nan, np.ones(3)) is None


def test_equal_columns_differ_by_nothing() -> None:
    values = np.random.default_rng(0).random(50)
    figure = mean_figure(values, values.copy())
    assert figure is not None
    assert figure.difference == Estimate(0.0, 0.0, 0.0, 50)
    assert mean_figure(values).difference is None  # type: ignore[union-attr]
