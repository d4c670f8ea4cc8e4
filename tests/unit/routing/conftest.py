"""Interactions of users with a few tastes."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from vllm_dare.routing.interactions import Positives


@pytest.fixture
def make_positives() -> Callable[..., Positives]:
    """User u likes two thirds of the items i with i = u modulo the number of tastes, and a few others."""

    def make(num_users: int, num_items: int, tastes: int, seed: int = 0) -> Positives:
        rng = np.random.default_rng(seed)
        users, items = np.meshgrid(np.arange(num_users), np.arange(num_items), indexing="ij")
        chance = np.where(users % tastes == items % tastes, 0.67, 0.03)
        liked = rng.random(chance.shape) < chance
        liked[np.arange(num_users), np.arange(num_users) % tastes] = True
        liked[np.arange(num_items) % tastes, np.arange(num_items)] = True
        where = np.nonzero(liked)
        ids = ([str(i) for i in range(num)] for num in (num_users, num_items))
        pairs = (part.astype(np.int32) for part in where)
        return Positives(*ids, *pairs, None, len(where[0]), 0, 0, 0)

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So little data is slower with several, above all where other tests run beside these."""
    with threadpool_limits(1):
        yield
