"""How well new users are placed: some are kept out of clustering and routed by a few of their items."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_dare.routing.history_space import HistorySpace
from vllm_dare.routing.interactions import Positives

FEW = 5
_SHARE = 0.1
_MOST, _FEWEST_USERS = 10_000, 100


@dataclass(frozen=True)
class Placing:
    """Where users that took no part in clustering were routed.

    Attributes:
        num_users: how many.
        few: share that five of their items route to the group that their embedding is nearest to.
        all: the same with all their items.
        few_as_all: share that five of their items route to where all of them do.
        chance: share that would agree by chance: the sum of the squared shares of the groups.
    """

    num_users: int
    few: float
    all: float
    few_as_all: float
    chance: float


def hold_out(positives: Positives, has_embedding: np.ndarray, seed: int) -> np.ndarray:
    """int64[n]: places of users to keep out of clustering, a tenth and at most 10,000 of those with more than
    five items.

    Args:
        positives: who liked what.
        has_embedding: bool[users], all users, those with positive interactions first.
        seed: of the choice.

    Returns:
        the places, ascending; none if fewer than 100 users have an embedding.
    """
    num_items = np.bincount(positives.users, minlength=len(has_embedding))
    able = np.flatnonzero((num_items > FEW) & has_embedding)
    if has_embedding.sum() < _FEWEST_USERS:
        return able[:0]
    count = min(_MOST, int(len(able) * _SHARE))
    return np.sort(np.random.default_rng(seed).choice(able, count, replace=False))


def first_few(positives: Positives, users: np.ndarray, seed: int) -> Any:
    """Five items of each user: the first in time, or any five if there are no times.

    Args:
        positives: who liked what.
        users: int64[n], places of users.
        seed: of the choice.

    Returns:
        n by items, a scipy CSR matrix of ones.
    """
    from scipy.sparse import csr_matrix

    times = positives.times
    order = np.random.default_rng(seed).random(len(positives.users)) if times is None else times
    starts = np.searchsorted(positives.users, [users, users + 1])
    chosen = [
        start + np.argsort(order[start:end], kind="stable")[:FEW]
        for start, end in zip(*starts.tolist(), strict=True)
    ]
    items = positives.items[np.concatenate(chosen)] if chosen else positives.items[:0]
    ends = np.concatenate([[0], np.cumsum([len(part) for part in chosen])]).astype(np.int32)
    return csr_matrix((np.ones(len(items), np.float32), items, ends), (len(users), positives.num_items))


def measure_placing(
    fit: Callable[[np.ndarray], HistorySpace],
    positives: Positives,
    labels: np.ndarray,
    held: np.ndarray,
    seed: int,
) -> Placing | None:
    """Route users that took no part in clustering.

    Args:
        fit: the space of groups, given the labels, int32[users], of those who count.
        positives: who liked what.
        labels: int32[users], the group of everyone, by their embedding.
        held: int64[n], places of the users to route.
        seed: of the choice of their items.

    Returns:
        the shares; None if nobody was held out.
    """
    if not len(held):
        return None
    without = labels.copy()
    without[held] = -1
    space = fit(without)
    few = space.route(first_few(positives, held, seed))
    everything = space.route(positives.matrix(len(labels))[held])
    shares = np.bincount(labels[labels >= 0]) / (labels >= 0).sum()
    return Placing(
        num_users=len(held),
        few=float((few == labels[held]).mean()),
        all=float((everything == labels[held]).mean()),
        few_as_all=float((few == everything).mean()),
        chance=float((shares**2).sum()),
    )
