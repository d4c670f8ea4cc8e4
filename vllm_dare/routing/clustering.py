"""Clusters of embeddings: how many, and who is in which."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_dare.extras import need

FEWEST_GROUPS, MOST_GROUPS = 4, 128
_STARTS = 5
_BATCH = 8192
_CHOICE_SAMPLE = 50_000
_SILHOUETTE_SAMPLE = 3_000

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Clusters:
    """Who is in which cluster.

    Attributes:
        labels: int32[users], 0 for the largest cluster and so on; -1 for a user without a vector.
        count: how many clusters.
        num_merged: clusters that were too small and went into another one.
    """

    labels: np.ndarray
    count: int
    num_merged: int

    @property
    def sizes(self) -> np.ndarray:
        """int64[count]"""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.count)


def group_counts(num_users: int, min_size: int) -> list[int]:
    """The numbers of groups that ``auto`` tries: 4, 6, 8, 11, 16, … 128, each 1.4 times the last.

    Not more than leave groups of ten users, or twice ``min_size``, on average.
    """
    most = min(MOST_GROUPS, num_users // max(10, 2 * min_size))
    counts = [round(FEWEST_GROUPS * 2 ** (i / 2)) for i in range(11)]
    return [count for count in counts if count <= most] or [max(1, min(FEWEST_GROUPS, num_users))]


def choose_count(
    vectors: np.ndarray, counts: Sequence[int], seed: int, tell: Tell
) -> tuple[int, dict[int, float]]:
    """The number of groups with the largest silhouette, on a sample of 50,000 users.

    Args:
        vectors: float32[users, dimensions] of length 1.
        counts: the numbers to try.
        seed: of the sample and of k-means.
        tell: called with what is being done.

    Returns:
        the number, and the silhouette of each; NaN where there is none (of one cluster, say).
    """
    rng = np.random.default_rng(seed)
    if len(vectors) > _CHOICE_SAMPLE:
        vectors = vectors[np.sort(rng.choice(len(vectors), _CHOICE_SAMPLE, replace=False))]
    found = {}
    for count in counts:
        tell(f"trying {count} groups")
        found[count] = silhouette(vectors, _k_means(vectors, count, seed).labels_, seed)
    best = max(found, key=lambda count: -np.inf if np.isnan(found[count]) else found[count])
    return best, found


def cluster(vectors: np.ndarray, fit_on: np.ndarray, count: int, min_size: int, seed: int) -> Clusters:
    """K-means; clusters of fewer than ``min_size`` go into the nearest other one.

    Clusters that stay empty, as when there are fewer different vectors, are left out.

    Args:
        vectors: float32[users, dimensions] of length 1, or 0 for a user that is to be left out.
        fit_on: bool[users], who decides where the clusters are, each with a vector; the others go to the
            nearest.
        count: how many; at most as many as decide.
        min_size: fewest users of a cluster, unless it is the only one.
        seed: of k-means.
    """
    known = vectors.any(axis=1)
    model = _k_means(vectors[fit_on], count, seed)
    labels = model.predict(vectors[known])
    labels, num_merged = _merge_small(labels, vectors[known], count, min_size)
    by_size = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    rank = np.empty(count, np.int32)
    rank[by_size] = np.arange(count, dtype=np.int32)
    everyone = np.full(len(vectors), -1, np.int32)
    everyone[known] = rank[labels]
    return Clusters(everyone, len(np.unique(labels)), num_merged)


def silhouette(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The silhouette (Rousseeuw 1987) of a sample of 3,000: from -1 to 1, 0 where clusters overlap.

    Args:
        vectors: float32[users, dimensions].
        labels: int[users].
        seed: of the sample.

    Returns:
        the mean over the sample; NaN if it has but one cluster, or nobody shares one.
    """
    if len(vectors) > _SILHOUETTE_SAMPLE:
        chosen = np.random.default_rng(seed).choice(len(vectors), _SILHOUETTE_SAMPLE, replace=False)
        vectors, labels = vectors[chosen], labels[chosen]
    if not 1 < len(np.unique(labels)) < len(labels):
        return float("nan")
    return float(
        need("sklearn.metrics", "scikit-learn", "'vllm-dare[groups]'").silhouette_score(vectors, labels)
    )


def _k_means(vectors: np.ndarray, count: int, seed: int) -> Any:
    """A fitted sklearn KMeans; it starts where the best of five mini-batch runs ended, which spares steps."""
    module = need("sklearn.cluster", "scikit-learn", "'vllm-dare[groups]'")
    start = module.MiniBatchKMeans(count, random_state=seed, n_init=_STARTS, batch_size=_BATCH).fit(vectors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters")  # the others stay empty
        return module.KMeans(count, init=start.cluster_centers_, n_init=1).fit(vectors)


def _merge_small(
    labels: np.ndarray, vectors: np.ndarray, count: int, min_size: int
) -> tuple[np.ndarray, int]:
    """The labels when every cluster has ``min_size``, the smallest merged first, and how many were merged."""
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    sizes = np.bincount(labels, minlength=count)
    into = np.arange(count)
    alive = sizes > 0
    num_merged = 0
    while alive.sum() > 1 and sizes[alive].min() < min_size:
        smallest = int(np.where(alive, sizes, np.iinfo(np.int64).max).argmin())
        alive[smallest] = False
        centres = sums / np.maximum(sizes, 1)[:, None]
        distances = ((centres - centres[smallest]) ** 2).sum(axis=1)
        nearest = int(np.where(alive, distances, np.inf).argmin())
        sums[nearest] += sums[smallest]
        sizes[nearest] += sizes[smallest]
        into[into == smallest] = nearest
        num_merged += 1
    return into[labels], num_merged
