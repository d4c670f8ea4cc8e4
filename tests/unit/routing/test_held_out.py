"""Users that are kept out, what is known of them, and how often they are placed well."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from vllm_dare.routing.held_out import first_few, hold_out, measure_placing
from vllm_dare.routing.history_space import HistorySpace
from vllm_dare.routing.interactions import Positives

Make = Callable[..., Positives]


def test_a_tenth_of_those_with_more_than_five_items(make_positives: Make) -> None:
    positives = make_positives(num_users=200, num_items=20, tastes=2)
    has_embedding = np.ones(203, bool)
    has_embedding[:50] = False
    counts = np.bincount(positives.users)
    able = {user for user in range(50, 200) if counts[user] > 5}
    held = hold_out(positives, has_embedding, 0)
    assert len(held) == len(able) // 10 > 5
    assert set(held.tolist()) <= able
    assert (np.diff(held) > 0).all()
    assert held.tolist() == hold_out(positives, has_embedding, 0).tolist()
    assert held.tolist() != hold_out(positives, has_embedding, 1).tolist()
    has_embedding[99:] = False
    assert not len(hold_out(positives, has_embedding, 0))


def test_five_items_the_first_if_there_are_times(make_positives: Make) -> None:
    positives = make_positives(num_users=30, num_items=40, tastes=2)
    times = np.random.default_rng(0).permutation(len(positives.users)).astype(float)
    users = np.array([3, 4, 29])
    timed = first_few(replace(positives, times=times), users, 0)
    drawn = first_few(positives, users, 0)
    for row, user in enumerate(users):
        mine = positives.users == user
        first = positives.items[mine][np.argsort(times[mine])[:5]]
        assert set(timed[row].indices) == set(first.tolist())
        assert len(set(drawn[row].indices)) == 5
        assert set(drawn[row].indices) <= set(positives.items[mine].tolist())
    assert first_few(positives, users[:0], 0).shape == (0, 40)


def test_shares(make_positives: Make) -> None:
    positives = make_positives(num_users=120, num_items=30, tastes=3)
    labels = (np.arange(120) % 3).astype(np.int32)
    held = np.arange(0, 30)
    space = HistorySpace(np.eye(3, dtype=np.float32)[np.arange(30) % 3], np.eye(3, dtype=np.float32))
    asked: list[np.ndarray] = []

    def fit(without: np.ndarray) -> HistorySpace:
        asked.append(without)
        return space

    found = measure_placing(fit, positives, labels, held, 0)
    assert (asked[0][:30] == -1).all() and (asked[0][30:] == labels[30:]).all()
    assert found is not None
    assert (found.num_users, found.all, found.chance) == (30, 1.0, pytest.approx(1 / 3))
    few = space.route(first_few(positives, held, 0))
    assert found.few == np.mean(few == labels[held]) == found.few_as_all

    wrong = replace(space, centroids=np.roll(space.centroids, 1, axis=0))
    found = measure_placing(lambda without: wrong, positives, labels, held, 0)
    assert found is not None and found.all == 0
    assert found.few_as_all > 0.9
    assert measure_placing(fit, positives, labels, held[:0], 0) is None


def test_a_history_of_unknown_items_is_placed_nowhere() -> None:
    space = HistorySpace(np.zeros((2, 2), np.float32), np.eye(2, dtype=np.float32))
    assert space.route(csr_matrix(np.ones((1, 2), np.float32))).tolist() == [-1]
