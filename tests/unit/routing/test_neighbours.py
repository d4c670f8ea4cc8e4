"""Whether near users share a group, against a loop over all of them."""

import numpy as np
import pytest

from vllm_dare.routing.embeddings import unit_rows
from vllm_dare.routing.neighbours import neighbour_overlap


def test_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.normal(size=(200, 3)).astype(np.float32))
    labels = rng.integers(4, size=200).astype(np.int32)
    labels[:100] = (vectors[:100, 0] > 0).astype(np.int32)
    shares = []
    for user in range(200):
        cosines = vectors @ vectors[user]
        cosines[user] = -2
        shares.append(np.mean(labels[np.argsort(-cosines)[:10]] == labels[user]))
    assert neighbour_overlap(vectors, labels, 0) == pytest.approx(np.mean(shares))


def test_too_few_users() -> None:
    vectors = unit_rows(np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32))
    assert neighbour_overlap(vectors[:10], np.zeros(10, np.int32), 0) is None
    assert neighbour_overlap(vectors, np.zeros(11, np.int32), 0) == 1
