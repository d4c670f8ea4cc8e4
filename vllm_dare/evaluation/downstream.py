"""Does a ranking model mind? Click-through models on embedded texts, and how their AUC and log-loss differ.

For each seed, interactions are split once, and the same model (scikit-learn's histogram gradient boosting) is
trained for every variant on the same rows; only what comes from the text differs. Intervals are over users:
all seeds see the same resampled users.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from vllm_dare.errors import ConfigError, DareError
from vllm_dare.evaluation.attributes import Stated
from vllm_dare.evaluation.bootstrap import (
    Estimate,
    Figure,
    draws,
    estimate,
    from_resamples,
    mean_figure,
)
from vllm_dare.evaluation.interactions import Interactions, Items
from vllm_dare.extras import need
from vllm_dare.pool.threads import usable_cores

Split = Literal["row", "user", "time"]
SPLITS: tuple[Split, ...] = get_args(Split)
RESAMPLES = 1000  # of users; an AUC takes longer than a mean
_TEST_SHARE = 0.2
_FOLDS = 5
_PRIOR = 5.0  # an item's mean label counts as if it had so many average interactions more
_CHUNK_CELLS = 4_000_000
_MODEL = {"max_iter": 100, "learning_rate": 0.1, "l2_regularization": 1.0, "max_features": 0.5}


@dataclass(frozen=True)
class UserText:
    """What a model gets to know of the texts of one variant.

    Attributes:
        vectors: float32[documents, dimensions], of length 1.
        value_vectors: float32[values of the items, dimensions]: the attribute's values as texts.
        stated: what the texts state, in the items' values.
    """

    vectors: np.ndarray
    value_vectors: np.ndarray
    stated: Stated


@dataclass(frozen=True)
class Ranking:
    """How well one variant's models rank.

    Attributes:
        auc, log_loss: mean over the seeds, with their differences to the baseline.
        user_auc: the AUC among the interactions of one user, mean over users; None if no user has both
            labels among those held out. What a text says of its user shows here first: how much they like
            things in general has no part in it.
        seeds: AUC of each seed.
    """

    auc: Figure
    log_loss: Figure
    user_auc: Figure | None
    seeds: Sequence[float]

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures that there are, by name."""
        found = {"auc": self.auc, "user_auc": self.user_auc, "log_loss": self.log_loss}
        return {name: figure for name, figure in found.items() if figure is not None}


def check_split(split: str, time_column: str | None) -> None:
    """Whether ``--split-by`` can be done.

    Raises:
        ConfigError: see the message.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split-by takes {', '.join(SPLITS)}, not {split!r}.")
    if (split == "time") != (time_column is not None):
        raise ConfigError("--split-by time and --time-column go together: give both, or neither.")


def rank(
    variants: Sequence[UserText],
    interactions: Interactions,
    items: Items,
    *,
    seeds: int,
    split: Split,
    tell: Callable[[str], None],
) -> list[Ranking]:
    """Train and test on every variant.

    Args:
        variants: the baseline first. One that is equal to it gets its predictions, and so differs by 0.
        interactions: of the documents' users alone.
        items: with their attributes.
        seeds: how many; each splits anew (but by time) and draws other features for each tree.
        split: ``row`` holds out a fifth of each user's interactions, ``time`` the latest fifth, ``user`` all
            interactions of a fifth of the users.
        tell: called with what is being done.

    Raises:
        DareError: scikit-learn is missing, or there are too few interactions to split.
    """
    users, documents = np.unique(interactions.users, return_inverse=True)
    trained = [i for i, text in enumerate(variants) if i == 0 or not _same(text, variants[0])]
    tests, scores, losses = [], [], []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for seed in range(seeds):
            tell(f"ranking models, seed {seed + 1} of {seeds}")
            held_out = held_out_rows(interactions, split, seed)
            labels = interactions.labels[held_out]
            _check_classes(interactions.labels, held_out)
            shared = _item_features(interactions, items, held_out, seed)

            one = partial(_predict, shared, interactions, items, held_out, seed, split == "user")
            own = dict(zip(trained, pool.map(one, [variants[i] for i in trained]), strict=True))
            tests.append((labels, documents[held_out]))
            scores.append([own.get(index, own[0]) for index in range(len(variants))])
            losses.append([_loss(found, labels) for found in scores[-1]])
    tell("resampling users")
    within = [_user_aucs(tests, found, len(users)) for found in zip(*scores, strict=True)]
    aucs = [_auc_resamples(tests, found, len(users)) for found in zip(*scores, strict=True)]
    by_variant = list(zip(*losses, strict=True))
    return [
        Ranking(
            _auc_figure(aucs[index], aucs[0] if index else None, len(users)),
            _loss_figure(by_variant[index], by_variant[0] if index else None, tests, len(users)),
            mean_figure(within[index], within[0] if index else None),
            aucs[index][2],
        )
        for index in range(len(variants))
    ]


def held_out_rows(interactions: Interactions, split: Split, seed: int) -> np.ndarray:
    """bool[interactions]: which are for testing."""
    generator = np.random.default_rng(seed)
    if split == "user":
        users = np.unique(interactions.users)
        count = max(1, round(_TEST_SHARE * len(users)))
        return np.isin(interactions.users, generator.permutation(users)[:count])
    if split == "time":
        assert interactions.times is not None
        order = np.lexsort((-interactions.times, interactions.users))
    else:
        order = np.lexsort((generator.random(len(interactions.users)), interactions.users))
    sorted_users = interactions.users[order]
    _, first, sizes = np.unique(sorted_users, return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, sizes)
    held_out = np.zeros(len(order), bool)
    held_out[order] = place < np.repeat(np.round(_TEST_SHARE * sizes), sizes)
    return held_out


def _check_classes(labels: np.ndarray, held_out: np.ndarray) -> None:
    for part in (labels[held_out], labels[~held_out]):
        if len(np.unique(part)) < 2:
            raise DareError(
                "There are too few interactions of these users to train on some and test on the others: both "
                "parts need positive and negative ones."
            )


def _item_features(interactions: Interactions, items: Items, held_out: np.ndarray, seed: int) -> np.ndarray:
    """float32[interactions, features] that no text has a part in, from the training rows alone.

    A training row's mean label of its item is that of the other folds: with its own label in it, the model
    would learn to read it there.
    """
    generator = np.random.default_rng((seed, 1))
    count, size = len(held_out), len(items.ids)
    fold = np.where(held_out, _FOLDS, generator.integers(_FOLDS, size=count))
    labels = interactions.labels
    average = labels[~held_out].mean()
    mean = np.empty(count)
    for part in range(_FOLDS + 1):
        known = ~held_out & (fold != part)
        number = np.bincount(interactions.items[known], minlength=size)
        liked = np.bincount(interactions.items[known], weights=labels[known], minlength=size)
        rate = (liked + _PRIOR * average) / (number + _PRIOR)
        mean[fold == part] = rate[interactions.items[fold == part]]
    popularity = np.bincount(interactions.items[~held_out], minlength=size)[interactions.items]
    columns = (mean, np.log1p(popularity), items.has[interactions.items].sum(axis=1))
    return np.column_stack([*columns, items.has[interactions.items]]).astype(np.float32)


def _text_features(
    text: UserText, interactions: Interactions, items: Items, with_vectors: bool
) -> np.ndarray:
    """float32[interactions, features]: how the text and the item go together, and the text's vector.

    The vector is left out where users that are tested were trained on: it would stand for the user's id,
    whatever the text says, and a text about somebody else would do as well.
    """
    vectors, has = text.vectors[interactions.users], items.has
    number = np.maximum(has.sum(axis=1, keepdims=True), 1)
    item_vectors = (has @ text.value_vectors / number)[interactions.items]
    stated = text.stated.sets[interactions.users]
    common = (stated & has[interactions.items]).sum(axis=1)
    first = text.stated.first[interactions.users]
    favourite = (first >= 0) & has[interactions.items, np.maximum(first, 0)]
    cosine = np.einsum("ij,ij->i", vectors, item_vectors)
    columns = (common, common / number[interactions.items, 0], stated.sum(axis=1), favourite, cosine)
    parts = [*columns, vectors] if with_vectors else columns
    return np.column_stack(parts).astype(np.float32)


def _predict(
    shared: np.ndarray,
    interactions: Interactions,
    items: Items,
    held_out: np.ndarray,
    seed: int,
    with_vectors: bool,
    text: UserText,
) -> np.ndarray:
    """float64[held out]: the probability of a positive label.

    In one thread: several would wait for each other, and on a busy machine do little else.
    """
    ensemble: Any = need("sklearn.ensemble", "scikit-learn")
    limits: Any = need("threadpoolctl", "threadpoolctl").threadpool_limits
    features = np.hstack([shared, _text_features(text, interactions, items, with_vectors)])
    model = ensemble.HistGradientBoostingClassifier(**_MODEL, early_stopping=False, random_state=seed)
    with limits(1, user_api="openmp"):  # which holds for this thread alone
        model.fit(features[~held_out], interactions.labels[~held_out])
        return np.asarray(model.predict_proba(features[held_out])[:, 1], np.float64)


def _same(one: UserText, other: UserText) -> bool:
    return (
        np.array_equal(one.vectors, other.vectors)
        and np.array_equal(one.stated.sets, other.stated.sets)
        and np.array_equal(one.stated.first, other.stated.first)
    )


def _loss(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    likely = np.clip(np.where(labels == 1, found, 1 - found), 1e-15, 1)
    return np.asarray(-np.log(likely))


def weighted_auc(found: np.ndarray, labels: np.ndarray, users: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area under the ROC curve for rows that count as often as their users were drawn.

    Args:
        found: float64[rows], predictions; equal ones count as half right.
        labels: float64[rows], 0 or 1.
        users: int64[rows], columns of ``weights``.
        weights: float64[resamples, users].

    Returns:
        float64[resamples]; NaN where a resample has only one kind of label.
    """
    order = np.argsort(found, kind="stable")
    _, starts = np.unique(found[order], return_index=True)
    positive = labels[order] == 1
    drawn = users[order]
    results = []
    step = max(1, _CHUNK_CELLS // len(order))
    for start in range(0, len(weights), step):
        rows = weights[start : start + step][:, drawn]
        above = np.add.reduceat(rows * positive, starts, axis=1)
        below = np.add.reduceat(rows * ~positive, starts, axis=1)
        ranked = np.cumsum(below, axis=1) - below / 2
        with np.errstate(invalid="ignore"):
            results.append((above * ranked).sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1)))
    return np.concatenate(results)


def _auc_resamples(
    tests: Sequence[tuple[np.ndarray, np.ndarray]], scores: Sequence[np.ndarray], num_users: int
) -> tuple[float, np.ndarray, list[float]]:
    """The mean AUC over seeds, that of every resample, and that of every seed."""
    once = np.ones((1, num_users))
    by_seed, resampled = [], []
    for (labels, users), found in zip(tests, scores, strict=True):
        by_seed.append(float(weighted_auc(found, labels, users, once)[0]))
        parts = [weighted_auc(found, labels, users, weights) for weights in _user_draws(num_users)]
        resampled.append(np.concatenate(parts))
    return float(np.mean(by_seed)), np.mean(resampled, axis=0), by_seed


def _user_aucs(
    tests: Sequence[tuple[np.ndarray, np.ndarray]], scores: Sequence[np.ndarray], num_users: int
) -> np.ndarray:
    """float64[users]: each user's own AUC, mean over the seeds that have one; NaN without any."""
    total, number = np.zeros(num_users), np.zeros(num_users)
    for (labels, users), found in zip(tests, scores, strict=True):
        order = np.argsort(users, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(users[order])) + 1):
            mine = np.zeros(len(rows), np.int64)
            area = weighted_auc(found[rows], labels[rows], mine, np.ones((1, 1)))[0]
            if not np.isnan(area):
                total[users[rows[0]]] += area
                number[users[rows[0]]] += 1
    with np.errstate(invalid="ignore"):
        return np.asarray(total / number)


def _user_draws(num_users: int) -> Iterator[np.ndarray]:
    return draws(num_users, RESAMPLES)


def _auc_figure(
    own: tuple[float, np.ndarray, list[float]],
    baseline: tuple[float, np.ndarray, list[float]] | None,
    num_users: int,
) -> Figure:
    difference = None
    if baseline is not None:
        difference = from_resamples(own[0] - baseline[0], own[1] - baseline[1], num_users)
    return Figure(from_resamples(own[0], own[1], num_users), difference)


def _loss_figure(
    own: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray] | None,
    tests: Sequence[tuple[np.ndarray, np.ndarray]],
    num_users: int,
) -> Figure:
    value = _mean_loss(own, tests, num_users)
    if baseline is None:
        return Figure(value)
    return Figure(value, _mean_loss([a - b for a, b in zip(own, baseline, strict=True)], tests, num_users))


def _mean_loss(
    losses: Sequence[np.ndarray], tests: Sequence[tuple[np.ndarray, np.ndarray]], num_users: int
) -> Estimate:
    """The loss a row, mean over seeds, from each seed's sums by user."""
    columns = []
    for (_, users), loss in zip(tests, losses, strict=True):
        columns.append(np.bincount(users, weights=loss, minlength=num_users))
        columns.append(np.bincount(users, minlength=num_users).astype(np.float64))

    def statistic(*sums: Any) -> Any:
        return np.mean([sums[i] / sums[i + 1] for i in range(0, len(sums), 2)], axis=0)

    found = estimate(statistic, *columns, resamples=RESAMPLES)
    assert found is not None
    return found
