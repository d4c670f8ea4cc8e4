"""Whether users that are near one another share a group."""

import numpy as np

NEIGHBOURS = 10
_SAMPLE, _ASKED = 20_000, 1_000


def neighbour_overlap(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float | None:
    """The share of the ten nearest users (by cosine) that are in a user's own group.

    Args:
        vectors: float32[users, dimensions] of length 1.
        labels: int32[users], their groups.
        seed: of the sample of 20,000 users, and of the 1,000 among them that are asked.

    Returns:
        the mean; None if there are not eleven users.
    """
    if len(vectors) <= NEIGHBOURS:
        return None
    chosen = np.random.default_rng(seed).permutation(len(vectors))[:_SAMPLE]
    vectors, labels = vectors[chosen], labels[chosen]
    asked = min(_ASKED, len(vectors))
    cosines = vectors[:asked] @ vectors.T
    cosines[np.arange(asked), np.arange(asked)] = -np.inf
    nearest = np.argpartition(-cosines, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return float((labels[nearest] == labels[:asked, None]).mean())
