"""Ranking models: their AUC against scikit-learn's, their splits, and that nothing of the test leaks."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from vllm_dare.errors import DareError
from vllm_dare.evaluation import downstream
from vllm_dare.evaluation.attributes import Stated
from vllm_dare.evaluation.downstream import (
    UserText,
    check_split,
    held_out_rows,
    rank,
    weighted_auc,
)
from vllm_dare.evaluation.interactions import Interactions, Items

USERS, ITEMS, GENRES = 60, 40, 4


def test_weighted_auc_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    users = generator.integers(9, size=400)
    labels = generator.integers(2, size=400).astype(float)
    found = np.round(generator.random(400) + 0.3 * labels, 1)  # with ties
    weights = generator.integers(4, size=(20, 9)).astype(float)
    mine = weighted_auc(found, labels, users, weights)
    for row, value in zip(weights, mine, strict=True):
        assert value == pytest.approx(roc_auc_score(labels, found, sample_weight=row[users]))
    assert np.isnan(weighted_auc(found, np.ones(400), users, weights)).all()


@pytest.fixture
def interactions() -> Interactions:
    generator = np.random.default_rng(1)
    users = np.repeat(np.arange(USERS), 30)
    items = generator.integers(ITEMS, size=len(users))
    liked = (users + items) % GENRES == 0
    labels = (generator.random(len(users)) < np.where(liked, 0.9, 0.2)).astype(float)
    return Interactions(users, items, labels, generator.permutation(len(users)).astype(float))


@pytest.fixture
def items() -> Items:
    has = (np.arange(ITEMS)[:, None] % GENRES) == np.arange(GENRES)
    return Items([str(i) for i in range(ITEMS)], [f"genre{i}" for i in range(GENRES)], has)


def _text(favourites: np.ndarray) -> UserText:
    sets = favourites[:, None] == np.arange(GENRES)
    return UserText(sets.astype(np.float32), np.eye(GENRES, dtype=np.float32), Stated(sets, favourites))


def _rank(texts: list[UserText], interactions: Interactions, items: Items, **options: Any):
    settings = {"seeds": 2, "split": "row", "tell": lambda what: None} | options
    return rank(texts, interactions, items, **settings)


@pytest.mark.parametrize("split", ["row", "time"])
def test_a_fifth_of_everyones_interactions_is_held_out(interactions: Interactions, split: Any) -> None:
    held_out = held_out_rows(interactions, split, 0)
    assert (np.bincount(interactions.users[held_out]) == 6).all()
    if split == "time":
        assert interactions.times is not None
        mine = interactions.users == 7
        assert interactions.times[mine & held_out].min() > interactions.times[mine & ~held_out].max()
    else:
        assert (held_out != held_out_rows(interactions, split, 1)).any()
    assert (held_out == held_out_rows(interactions, split, 0)).all()


def test_or_a_fifth_of_the_users(interactions: Interactions) -> None:
    held_out = held_out_rows(interactions, "user", 0)
    tested = set(interactions.users[held_out])
    assert len(tested) == USERS / 5
    assert not tested & set(interactions.users[~held_out])


def test_labels_that_are_held_out_have_no_part_in_features(interactions: Interactions, items: Items) -> None:
    held_out = held_out_rows(interactions, "row", 0)
    flipped = np.where(held_out, 1 - interactions.labels, interactions.labels)
    other = Interactions(interactions.users, interactions.items, flipped, None)
    one, two = (downstream._item_features(found, items, held_out, 0) for found in (interactions, other))
    np.testing.assert_array_equal(one, two)


def test_a_training_rows_own_label_has_no_part_in_its_features(items: Items) -> None:
    one = Interactions(np.arange(20), np.zeros(20, int), np.tile([0.0, 1.0], 10), None)
    labels = one.labels.copy()
    labels[3] = 0
    other = Interactions(one.users, one.items, labels, None)
    held_out = np.arange(20) >= 16
    first, second = (downstream._item_features(found, items, held_out, 0) for found in (one, other))
    changed = first[:, 0] != second[:, 0]
    assert changed.any()
    # the average, which every mean is drawn towards, is all that row 3 has of its own label
    assert abs(first[3, 0] - second[3, 0]) < np.abs(first - second)[changed, 0].max()


def test_the_same_text_differs_by_nothing(interactions: Interactions, items: Items) -> None:
    favourites = -np.arange(USERS) % GENRES
    texts = [_text(favourites), _text(favourites.copy())]
    base, same = _rank(texts, interactions, items)
    for figure in (same.auc, same.log_loss):
        assert figure.difference is not None
        assert (figure.difference.value, figure.difference.width) == (0.0, 0.0)
    assert base.auc.difference is None
    assert len(base.seeds) == 2 and base.auc.estimate.value == pytest.approx(np.mean(base.seeds))
    assert base.auc.estimate.count == USERS


@pytest.mark.parametrize("split", ["row", "user", "time"])
def test_texts_of_other_users_rank_worse(interactions: Interactions, items: Items, split: Any) -> None:
    favourites = -np.arange(USERS) % GENRES
    shuffled = np.random.default_rng(0).permutation(favourites)
    base, other = _rank([_text(favourites), _text(shuffled)], interactions, items, split=split)
    assert other.auc.difference is not None and other.auc.difference.high < 0
    assert other.log_loss.difference is not None and other.log_loss.difference.low > 0
    assert base.auc.estimate.low > other.auc.estimate.value


def test_log_loss_is_scikit_learns(
    interactions: Interactions, items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = np.random.default_rng(5).random(len(interactions.labels))
    monkeypatch.setattr(downstream, "_predict", lambda *a: found[a[3]])
    text = _text(np.zeros(USERS, int))
    (ranking,) = _rank([text], interactions, items)
    expected, areas = [], []
    own: dict[int, list[float]] = {}
    for seed in range(2):
        rows = held_out_rows(interactions, "row", seed)
        expected.append(log_loss(interactions.labels[rows], found[rows]))
        areas.append(roc_auc_score(interactions.labels[rows], found[rows]))
        for user in range(USERS):
            mine = rows & (interactions.users == user)
            if len(set(interactions.labels[mine])) == 2:
                own.setdefault(user, []).append(roc_auc_score(interactions.labels[mine], found[mine]))
    assert ranking.log_loss.estimate.value == pytest.approx(np.mean(expected))
    assert ranking.user_auc is not None
    assert ranking.user_auc.estimate.value == pytest.approx(np.mean([np.mean(a) for a in own.values()]))
    assert ranking.seeds == pytest.approx(areas)


def test_too_few_interactions_are_one_sentence(items: Items) -> None:
    few = Interactions(np.array([0, 0, 0]), np.array([0, 1, 2]), np.array([1.0, 1.0, 0.0]), None)
    with pytest.raises(DareError, match="too few interactions"):
        _rank([_text(np.zeros(USERS, int))], few, items)


@pytest.mark.parametrize(("split", "column"), [("day", None), ("time", None), ("row", "t")])
def test_a_split_that_cannot_be_made(split: str, column: str | None) -> None:
    with pytest.raises(DareError):
        check_split(split, column)


def test_vectors_are_left_out_where_they_would_stand_for_the_user(
    interactions: Interactions, items: Items
) -> None:
    text = _text(-np.arange(USERS) % GENRES)
    without, full = (downstream._text_features(text, interactions, items, flag) for flag in (False, True))
    assert full.shape[1] - without.shape[1] == text.vectors.shape[1]
    has = items.has[interactions.items, text.stated.first[interactions.users]]
    np.testing.assert_array_equal(without[:, 0], has, "the values in common")
    np.testing.assert_array_equal(without[:, 3], has, "whether the favourite is among them")
