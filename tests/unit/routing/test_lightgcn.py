"""LightGCN: the shortcut through the symmetric graph gives autograd's own gradients; and it finds tastes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vllm_dare.routing import lightgcn
from vllm_dare.routing.embeddings import unit_rows
from vllm_dare.routing.interactions import Positives
from vllm_dare.routing.lightgcn import learn_lightgcn

torch = pytest.importorskip("torch")
models = pytest.importorskip("torch_geometric.nn.models")


def silent(what: str) -> None:
    pass


def test_training_is_that_of_autograd(make_positives: Callable[..., Positives]) -> None:
    positives = make_positives(num_users=30, num_items=12, tastes=3)
    steps, num_users = 4, positives.num_users
    found = learn_lightgcn(positives, 7, silent, steps=steps)

    torch.manual_seed(7)
    model = models.LightGCN(num_users + positives.num_items, 32, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    users = torch.from_numpy(positives.users.astype(np.int64))
    items = torch.from_numpy(positives.items.astype(np.int64)) + num_users
    edges = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
    for who, liked, other in lightgcn._triples(positives, 7, steps):
        smoothed = model.get_embedding(edges)
        scores = [(smoothed[who] * smoothed[num_users + part]).sum(1) for part in (liked, other)]
        nodes = torch.cat([who, num_users + liked, num_users + other])
        optimizer.zero_grad()
        model.recommendation_loss(*scores, node_id=nodes, lambda_reg=1e-4).backward()
        optimizer.step()
    expected = model.get_embedding(edges).detach().numpy()
    np.testing.assert_allclose(found.users, expected[:num_users], atol=1e-4)
    np.testing.assert_allclose(found.items, expected[num_users:], atol=1e-4)


def test_negatives_are_items_that_the_user_does_not_like(make_positives: Callable[..., Positives]) -> None:
    positives = make_positives(num_users=40, num_items=9, tastes=3)
    known = set(zip(positives.users.tolist(), positives.items.tolist(), strict=True))
    num_drawn = 0
    for users, liked, other in lightgcn._triples(positives, 0, 5):
        assert set(zip(users.tolist(), liked.tolist(), strict=True)) <= known
        assert not set(zip(users.tolist(), other.tolist(), strict=True)) & known
        num_drawn += len(users)
    assert num_drawn > 5 * len(known) / 3


def test_users_of_one_taste_are_near_and_runs_repeat(make_positives: Callable[..., Positives]) -> None:
    positives = make_positives(num_users=60, num_items=30, tastes=3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (learn_lightgcn(positives, 0, silent, steps=25) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()) and threads == torch.get_num_threads()
    np.testing.assert_array_equal(first.users, second.users)
    tastes = np.array([int(user) for user in positives.user_ids]) % 3
    vectors = unit_rows(first.users)
    cosines = vectors @ vectors.T
    same = tastes[:, None] == tastes[None, :]
    assert cosines[same].mean() > cosines[~same].mean() + 0.5
    other = learn_lightgcn(positives, 1, silent, steps=25)
    assert not np.array_equal(first.users, other.users)


def test_a_user_who_likes_everything(tmp_path: Path) -> None:
    positives = Positives(["a"], ["x"], np.zeros(1, np.int32), np.zeros(1, np.int32), None, 1, 0, 0, 0)
    assert np.isfinite(learn_lightgcn(positives, 0, silent, steps=3).users).all()
