"""ALS and BPR find tastes, and find them again."""

from collections.abc import Callable

import numpy as np
import pytest

from vllm_dare.routing.embeddings import Embeddings, unit_rows
from vllm_dare.routing.factorization import learn_als, learn_bpr
from vllm_dare.routing.interactions import Positives

pytest.importorskip("implicit")


@pytest.mark.parametrize("learn", [learn_als, learn_bpr])
def test_users_of_one_taste_are_near_and_runs_repeat(
    learn: Callable[..., Embeddings], make_positives: Callable[..., Positives]
) -> None:
    positives = make_positives(num_users=90, num_items=60, tastes=3)
    told: list[str] = []
    first, second = (learn(positives, 3, told.append) for _ in range(2))
    assert told
    assert first.users.shape == (90, 32) and first.items.shape == (60, 32)
    np.testing.assert_array_equal(first.users, second.users)
    np.testing.assert_array_equal(first.items, second.items)
    tastes = np.arange(90) % 3
    vectors = unit_rows(first.users)
    cosines = vectors @ vectors.T
    same = tastes[:, None] == tastes[None, :]
    assert cosines[same].mean() > cosines[~same].mean() + 0.2
    assert not np.array_equal(first.users, learn(positives, 4, told.append).users)
