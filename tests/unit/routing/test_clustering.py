"""Clusters: how many, none too small, the largest first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.routing import clustering
from vllm_dare.routing.clustering import choose_count, cluster, group_counts, silhouette
from vllm_dare.routing.embeddings import unit_rows


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around as many axes as there are sizes, and whose axis each is."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = np.eye(len(sizes), dtype=np.float32)[truth]
    return unit_rows(vectors + rng.normal(0, 0.05, vectors.shape).astype(np.float32)), truth


def everyone(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors.any(axis=1))


def test_clusters_are_the_blobs_the_largest_first() -> None:
    vectors, truth = blobs([20, 60, 40])
    found = cluster(vectors, everyone(vectors), 3, 1, 0)
    assert found.sizes.tolist() == [60, 40, 20]
    np.testing.assert_array_equal(found.labels, np.array([2, 0, 1])[truth])
    again = cluster(vectors, everyone(vectors), 3, 1, 0)
    np.testing.assert_array_equal(found.labels, again.labels)


def test_users_without_a_vector_and_users_held_out() -> None:
    vectors, truth = blobs([30, 30, 30])
    vectors[:5] = 0
    free = everyone(vectors)
    free[80:] = False
    found = cluster(vectors, free, 3, 1, 0)
    assert (found.labels[:5] == -1).all()
    for taste in range(3):
        assert len(set(found.labels[5:][truth[5:] == taste])) == 1
    # who is held out does not move the clusters
    vectors[80:] = unit_rows(vectors[80:] + 0.2)
    np.testing.assert_array_equal(cluster(vectors, free, 3, 1, 0).labels[:80], found.labels[:80])


def test_small_clusters_go_into_the_nearest() -> None:
    centres = np.array([[1, 0], [0, 1], [0.1, 0.9]])
    vectors = unit_rows(np.repeat(centres, [10, 10, 3], axis=0).astype(np.float32))
    found = cluster(vectors, everyone(vectors), 3, 4, 0)
    assert (found.count, found.num_merged) == (2, 1)
    assert found.sizes.tolist() == [13, 10]
    assert set(found.labels[20:]) == set(found.labels[10:20])


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 30))
def test_no_cluster_is_too_small_unless_it_is_the_only_one(sizes: list[int], min_size: int) -> None:
    vectors, _ = blobs(sizes)
    labels, num_merged = clustering._merge_small(
        np.repeat(np.arange(len(sizes)), sizes), vectors, len(sizes), min_size
    )
    left = np.unique(labels, return_counts=True)[1]
    assert len(left) == len(sizes) - num_merged
    assert left.min() >= min_size or len(left) == 1
    assert left.sum() == sum(sizes)


def test_clusters_that_stay_empty_leave_no_gap() -> None:
    vectors = unit_rows(np.repeat(np.eye(3, dtype=np.float32), 4, axis=0))
    found = cluster(vectors, everyone(vectors), 6, 1, 0)
    assert found.count == 3
    assert found.sizes.tolist() == [4, 4, 4]


def test_auto_finds_the_number_of_blobs() -> None:
    vectors, _ = blobs([25] * 6)
    best, found = choose_count(vectors, group_counts(len(vectors), 1), 0, lambda what: None)
    assert best == 6
    assert list(found) == [4, 6, 8, 11]
    assert found[6] == max(found.values())


@pytest.mark.parametrize(
    ("num_users", "min_size", "counts"),
    [
        (1_000_000, 10, [4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128]),
        (200, 1, [4, 6, 8, 11, 16]),
        (200, 20, [4]),
        (3, 1, [3]),
        (1, 1, [1]),
    ],
)
def test_numbers_that_auto_tries(num_users: int, min_size: int, counts: list[int]) -> None:
    assert group_counts(num_users, min_size) == counts


def test_silhouette_by_hand() -> None:
    vectors = np.array([[0.0], [1.0], [10.0], [12.0]], np.float32)
    expected = np.mean([(11 - 1) / 11, (10 - 1) / 10, (9.5 - 2) / 9.5, (11.5 - 2) / 11.5])
    assert silhouette(vectors, np.array([0, 0, 1, 1]), 0) == pytest.approx(expected)
    assert np.isnan(silhouette(vectors, np.zeros(4, int), 0))
    assert np.isnan(silhouette(vectors, np.arange(4), 0))
