"""Where new users go: the nearest centroid of what they like."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from vllm_dare.routing.embeddings import Embeddings, unit_rows
from vllm_dare.routing.history_space import fit_history_space
from vllm_dare.routing.query import Query
from vllm_dare.routing.router import Router
from vllm_dare.routing.router_file import RouterFile, write_user_router

RNG = np.random.default_rng(0)
ITEMS = RNG.normal(size=(20, 4)).astype(np.float32)
USERS = RNG.normal(size=(50, 4)).astype(np.float32)
ITEMS[3] = 0
LIKED = (RNG.random((50, 20)) < 0.3).astype(np.float32)
LIKED[7] = 0
LIKED[8] = np.eye(20)[3]
LABELS = RNG.integers(3, size=50).astype(np.int32)
LABELS[:5] = -1


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def test_against_a_loop() -> None:
    space = fit_history_space(Embeddings(USERS, ITEMS), csr_matrix(LIKED), LABELS, 3)
    items = [unit(item) for item in ITEMS]
    taste = [unit(np.sum([items[i] for i in np.flatnonzero(row)], axis=0)) for row in LIKED]
    taste[7], taste[8] = unit(USERS[7]), unit(USERS[8])  # members whose items say nothing
    for group in range(3):
        mean = np.mean([taste[user] for user in np.flatnonzero(group == LABELS)], axis=0)
        np.testing.assert_allclose(space.centroids[group], mean, atol=1e-6)
    routed = space.route(csr_matrix(LIKED))
    for user, row in enumerate(LIKED):
        vector = np.sum([items[i] for i in np.flatnonzero(row)], axis=0) if row.any() else np.zeros(4)
        cosines = [unit(centroid) @ unit(vector) for centroid in space.centroids]
        assert routed[user] == (int(np.argmax(cosines)) if np.any(vector) else -1)
    assert routed[7] == routed[8] == -1


def test_the_router_of_a_pool_agrees(tmp_path_factory: pytest.TempPathFactory) -> None:
    space = fit_history_space(Embeddings(USERS, ITEMS), csr_matrix(LIKED), LABELS, 3)
    names = ["users/0", "users/1", "users/2"]
    path = write_user_router(
        tmp_path_factory.mktemp("r"),
        groups=names,
        centroids=space.centroids,
        item_ids=[f"i{i}" for i in range(20)],
        item_vectors=space.items,
    )
    router = Router(None, [RouterFile.open(path)])
    for row, place in zip(LIKED, space.route(csr_matrix(LIKED)), strict=True):
        history = [f"i{i}" for i in np.flatnonzero(row)]
        assert router.route(Query(history=history)).group == (names[place] if place >= 0 else None)


def test_rows_of_unit_length() -> None:
    rows = np.array([[3, 4], [0, 0], [1e-33, 1e-33], [1e10, 0]], np.float32)
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8], [0, 0], [0, 0], [1, 0]], rtol=1e-6)
