"""Placing users that nobody has clustered: by the items they like.

A user's history vector is the sum of the vectors of the items, at length 1. A group's centroid is the mean of
its members' history vectors, and a new user goes to the group whose centroid has the largest cosine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_dare.routing.embeddings import Embeddings, unit_rows


@dataclass(frozen=True)
class HistorySpace:
    """Where items and groups lie.

    Attributes:
        items: float32[items, dimensions] of length 1; 0 for an item that says nothing.
        centroids: float32[groups, dimensions].
    """

    items: np.ndarray
    centroids: np.ndarray

    def histories(self, liked: Any) -> np.ndarray:
        """float32[users, dimensions]: the history vectors of users, of length 1.

        Args:
            liked: users by items, a scipy CSR matrix of ones.
        """
        return unit_rows(liked @ self.items)

    def route(self, liked: Any) -> np.ndarray:
        """int32[users]: the group of each; -1 for a user whose items say nothing.

        Args:
            liked: users by items, a scipy CSR matrix of ones.
        """
        histories = self.histories(liked)
        groups = (histories @ unit_rows(self.centroids).T).argmax(axis=1).astype(np.int32)
        return np.where(histories.any(axis=1), groups, np.int32(-1))


def fit_history_space(
    embeddings: Embeddings, liked: Any, labels: np.ndarray, num_groups: int
) -> HistorySpace:
    """Find the centroids that belong to groups.

    Items count alike, whatever the length of their vectors. A member without a history that says anything
    counts by its own embedding, where both are of one space.

    Args:
        embeddings: of the users and items.
        liked: users by items, a scipy CSR matrix of ones.
        labels: int32[users], the group of each; -1 for users that do not count.
        num_groups: how many groups there are.
    """
    space = HistorySpace(unit_rows(embeddings.items), np.zeros((num_groups, 0), np.float32))
    histories = space.histories(liked)
    silent = ~histories.any(axis=1)
    histories[silent] = unit_rows(embeddings.users[silent])
    members = labels >= 0
    sums = np.zeros((num_groups, histories.shape[1]))
    for dimension in range(histories.shape[1]):
        sums[:, dimension] = np.bincount(labels[members], histories[members, dimension], num_groups)
    sizes = np.bincount(labels[members], minlength=num_groups)
    return HistorySpace(space.items, (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32))
