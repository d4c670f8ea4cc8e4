"""What texts say of their users: which attribute values they state, and whether these are right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_dare.evaluation.attributes import Stated, words
from vllm_dare.evaluation.bootstrap import Estimate, Figure, estimate, mean_figure, ratio
from vllm_dare.evaluation.interactions import Interactions, Items

Figures = dict[str, Figure]


@dataclass(frozen=True)
class History:
    """What users really liked.

    Attributes:
        shares: float64[documents, values], the share of a user's positive interactions whose item has the
            value; NaN for users without one, and for values that no item has.
        right: float64[documents, values], 1 where that share is at least the one over all users (a lift of 1
            or more), 0 where it is less; NaN likewise.
    """

    shares: np.ndarray
    right: np.ndarray


def content_figures(baseline: Stated, variant: Stated, history: History | None, is_baseline: bool) -> Figures:
    """The figures of one variant.

    With the baseline's text of the same id: ``agreement`` (the share of the values that both or neither
    state, mean over documents), ``jaccard`` and ``f1`` of the two sets of stated values (1 where both are
    empty), and ``first_agreement`` (the same value is named first, or none in both). ``stated`` is the mean
    number of values stated. Against the user's history: ``precision``, the share of stated values that are
    right, where a value is right if the user's share of positive interactions with it is at least the share
    over all users (lift >= 1); and ``history_share``, the mean of the former share over stated values. Both
    are over all stated values of all users who have positive interactions.
    """
    base = None if is_baseline else baseline.sets.sum(axis=1).astype(np.float64)
    figures = {"stated": mean_figure(variant.sets.sum(axis=1).astype(np.float64), base)}
    if not is_baseline:
        figures |= {name: mean_figure(values) for name, values in _likeness(baseline, variant).items()}
    if history is not None:
        other = None if is_baseline else baseline.sets
        figures["precision"] = _mean_of_stated(history.right, variant.sets, other)
        figures["history_share"] = _mean_of_stated(history.shares, variant.sets, other)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _likeness(baseline: Stated, variant: Stated) -> dict[str, np.ndarray]:
    both = (baseline.sets & variant.sets).sum(axis=1)
    either = (baseline.sets | variant.sets).sum(axis=1)
    with np.errstate(invalid="ignore"):
        jaccard = np.where(either > 0, both / either, 1.0)
        f1 = np.where(either > 0, 2 * both / (both + either), 1.0)
    return {
        "agreement": (baseline.sets == variant.sets).mean(axis=1),
        "jaccard": jaccard,
        "f1": f1,
        "first_agreement": (baseline.first == variant.first).astype(np.float64),
    }


def _mean_of_stated(values: np.ndarray, sets: np.ndarray, baseline: np.ndarray | None) -> Figure | None:
    """The mean of a value over all that is stated, and how it differs from the baseline's."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    above, below = (filled * sets).sum(axis=1), (known & sets).sum(axis=1).astype(np.float64)
    judged = known.any(axis=1)  # users without history say nothing, and must not count as documents
    above, below = np.where(judged, above, np.nan), np.where(judged, below, np.nan)
    own = ratio(above, below)
    if own is None:
        return None
    if baseline is None:
        return Figure(own)
    other_above = np.where(judged, (filled * baseline).sum(axis=1), np.nan)
    other_below = np.where(judged, (known & baseline).sum(axis=1), np.nan)
    difference = estimate(
        lambda a, b, c, d: np.divide(a, b) - np.divide(c, d), above, below, other_above, other_below
    )
    return Figure(own, difference)


def attribute_records(values: Sequence[str], baseline: Stated, variant: Stated) -> list[dict[str, Any]]:
    """For each value: how many state it, and how far the variant agrees with the baseline.

    Returns:
        ``value``, ``stated`` and ``baseline_stated`` (shares of the documents), ``agreement`` (the share in
        which both or neither state it) and ``kappa`` (Cohen's; None where it is not defined, as when nobody
        states the value), the latter two as `Estimate.as_dict`.
    """
    records = []
    for index, value in enumerate(values):
        one, two = (found.sets[:, index].astype(np.float64) for found in (baseline, variant))
        agreement = estimate(lambda same, count: same / count, (one == two).astype(float), np.ones(len(one)))
        kappa = estimate(_kappa, one * two, one, two, np.ones(len(one)))
        records.append(
            {
                "value": value,
                "baseline_stated": float(one.mean()),
                "stated": float(two.mean()),
                "agreement": _dict(agreement),
                "kappa": _dict(kappa),
            }
        )
    return records


def _kappa(both: Any, one: Any, two: Any, count: Any) -> Any:
    """Cohen's kappa from counts of documents: (observed - expected) / (1 - expected) agreement."""
    observed = (count - one - two + 2 * both) / count
    expected = (one * two + (count - one) * (count - two)) / count**2
    return np.where(expected < 1, np.divide(observed - expected, 1 - expected), np.nan)


def _dict(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else found.as_dict()


def read_history(
    interactions: Interactions, items: Items, vocabulary: Sequence[str], num_documents: int
) -> History:
    """What users liked, by the values of a vocabulary.

    Args:
        interactions: everybody's; those of others than the documents' users count for the share over all.
        items: with their attributes.
        vocabulary: its values; one that no item has (compared without case and plural) is not judged.
        num_documents: how many there are.
    """
    place = {tuple(words(value)): i for i, value in enumerate(items.values)}
    columns = [place.get(tuple(words(value))) for value in vocabulary]
    liked = interactions.labels == 1
    users, liked_items = interactions.users[liked], interactions.items[liked]
    ours = users >= 0
    count = np.bincount(users[ours], minlength=num_documents).astype(np.float64)
    shares = np.full((num_documents, len(vocabulary)), np.nan)
    right = np.full_like(shares, np.nan)
    for index, column in enumerate(columns):
        if column is None:
            continue
        has = items.has[liked_items, column]
        with np.errstate(invalid="ignore"):
            own = np.bincount(users[ours], weights=has[ours], minlength=num_documents) / count
        shares[:, index] = own
        right[:, index] = np.where(np.isnan(own), np.nan, own >= has.mean())
    return History(shares, right)
