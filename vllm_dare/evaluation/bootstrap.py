"""Confidence intervals by resampling documents or users (Efron's percentile bootstrap).

Every statistic here is a function of sums over documents. So a resample is a row of counts, how often each
document was drawn, and one matrix product gives all resamples of a sum. The draws depend on the number of
documents and the seed alone: two figures over the same documents are resampled alike, which pairs them, and
equal columns give equal results to the last bit. From 10,000 documents, fewer resamples do, down to 500.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES, CONFIDENCE = 2000, 0.95
_LEAST_RESAMPLES, _CELLS = 500, 20_000_000
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and how far it may be off.

    Attributes:
        value: over all documents.
        low, high: the bounds of the bootstrap's 95 % interval.
        count: documents (or users) that it rests on.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def width(self) -> float:
        """From the lower bound to the upper."""
        return self.high - self.low

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, the width included."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "width": self.width,
            "count": self.count,
        }


@dataclass(frozen=True)
class Figure:
    """A figure of one variant, and its difference to the baseline's over the same documents.

    Attributes:
        estimate: the variant's own.
        difference: variant less baseline; None for the baseline itself, and for figures that compare with the
            baseline as they are.
    """

    estimate: Estimate
    difference: Estimate | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        difference = None if self.difference is None else self.difference.as_dict()
        return {**self.estimate.as_dict(), "difference": difference}


def draws(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of ``count`` documents is drawn: float64[some of the resamples, count]."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // max(count, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        chosen = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=rows * count)
        yield counts.reshape(rows, count).astype(np.float64)


def estimate(
    statistic: Callable[..., Any], *columns: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Estimate | None:
    """A statistic of column sums, with its interval.

    Args:
        statistic: from the sums of the columns to the figure; it is called with floats and with
            float64[resamples] arrays. NaN where it has no value.
        columns: float[documents] each; a document with a NaN in any of them is left out.
        resamples: how many; None is 2,000, or fewer for many documents.
        seed: of the draws.

    Returns:
        the figure; None if there is no document, or the statistic has no value.
    """
    table = np.array(columns, np.float64)
    table = table[:, ~np.isnan(table).any(axis=0)]
    count = table.shape[1]
    if not count:
        return None
    if resamples is None:
        resamples = min(RESAMPLES, max(_LEAST_RESAMPLES, _CELLS // count))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*(column.sum() for column in table)))
        sums = [
            # one product a column, not one of matrices: equal columns then give equal sums, bit for bit
            np.stack([weights @ column for column in table])
            for weights in draws(count, resamples, seed)
        ]
        found = np.asarray(statistic(*np.concatenate(sums, axis=1)), np.float64)
    return None if np.isnan(value) else from_resamples(value, found, count)


def mean(values: np.ndarray) -> Estimate | None:
    """The mean of float[documents], NaN left out."""
    present = np.where(np.isnan(values), np.nan, 1.0)
    return estimate(lambda total, number: total / number, values, present)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate | None:
    """The ratio of two sums over documents."""
    return estimate(np.divide, numerators, denominators)


def from_resamples(value: float, found: np.ndarray, count: int) -> Estimate:
    """The estimate whose resamples are ``found``; those without a value (NaN) are left out."""
    tail = (1 - CONFIDENCE) / 2
    there = found[~np.isnan(found)]
    low, high = np.quantile(there, (tail, 1 - tail)) if len(there) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), count)


def mean_figure(values: np.ndarray, baseline: np.ndarray | None = None) -> Figure | None:
    """The mean over documents, and the mean of the differences to the baseline's, document by document."""
    own = mean(values)
    if own is None:
        return None
    return Figure(own, None if baseline is None else mean(values - baseline))
