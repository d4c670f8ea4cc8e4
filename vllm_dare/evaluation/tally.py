"""What the steps of a walk add up to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_dare.drafting.drafter import Origin
from vllm_dare.evaluation.walk import Step

NUM_BINS = 20
_MAX_MATCH = 128  # longer matches count as this long


@dataclass(frozen=True)
class Reliability:
    """Predicted survival probabilities against what came to pass.

    Attributes:
        counts: int64[NUM_BINS], how many draft tokens had a prediction in each bin of equal width.
        predicted: float64[NUM_BINS], the mean prediction in each bin; 0 in an empty one.
        observed: float64[NUM_BINS], the share of tokens in each bin that were accepted; 0 in an empty one.
    """

    counts: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.float64]
    observed: npt.NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of prediction and observation over the bins, each weighted with its count."""
        distance = np.abs(self.predicted - self.observed)
        return float((distance * self.counts).sum() / max(self.counts.sum(), 1))


class Tally:
    """Counts steps.

    Args:
        max_drafts: the longest chain.

    Attributes:
        texts: texts begun; tokens: output tokens; steps: runs of the target model.
        chains: steps in which at least one token was drafted; drafted, accepted: tokens.
        accepted_at: int64[max_drafts], how often the chain was right up to and including each position.
        drafted_at: int64[max_drafts], how often there was a token at each position that the text could judge.
        survival_at: float64[max_drafts], the predicted survival probabilities of those, added up.
        drafted_from, accepted_from: int64[origins], tokens by `Origin`; zeros if the drafter does not tell.
        matches: int64[_MAX_MATCH + 1], chains by the length of the match that gave their first token.
        nanoseconds: what each look-up took.
    """

    def __init__(self, max_drafts: int) -> None:
        self.texts = self.tokens = self.steps = self.chains = self.drafted = self.accepted = 0
        self.accepted_at = np.zeros(max_drafts, np.int64)
        self.drafted_at = np.zeros(max_drafts, np.int64)
        self.survival_at = np.zeros(max_drafts)
        self.drafted_from = np.zeros(len(Origin), np.int64)
        self.accepted_from = np.zeros(len(Origin), np.int64)
        self.matches = np.zeros(_MAX_MATCH + 1, np.int64)
        self.nanoseconds: list[int] = []
        self._bin_counts = np.zeros(NUM_BINS, np.int64)
        self._bin_predicted = np.zeros(NUM_BINS)
        self._bin_observed = np.zeros(NUM_BINS)

    def add(self, step: Step) -> None:
        """Count one step."""
        self.tokens += step.written
        self.steps += 1
        chain = step.chain
        if chain is None:
            return
        self.nanoseconds.append(step.nanoseconds)
        if not len(chain.tokens):
            return
        self.chains += 1
        self.drafted += len(chain.tokens)
        self.accepted += step.accepted
        self.accepted_at[: step.accepted] += 1
        self.drafted_at[: step.judged] += 1
        if chain.origins is not None:
            self.drafted_from += np.bincount(chain.origins, minlength=len(Origin))
            self.accepted_from += np.bincount(chain.origins[: step.accepted], minlength=len(Origin))
        if chain.match is not None:
            self.matches[min(chain.match, _MAX_MATCH)] += 1
        if chain.survivals is not None:
            self._count_survivals(chain.survivals[: step.judged], step.accepted)

    def _count_survivals(self, survivals: npt.NDArray[np.float32], accepted: int) -> None:
        self.survival_at[: len(survivals)] += survivals
        bins = np.minimum((survivals * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        np.add.at(self._bin_counts, bins, 1)
        np.add.at(self._bin_predicted, bins, survivals)
        np.add.at(self._bin_observed, bins[:accepted], 1)

    def reliability(self) -> Reliability | None:
        """The reliability of the predictions; None if there were none.

        Every drafted token that the text can judge counts, those behind a chain's first wrong token as not
        accepted: a survival probability is that of the whole chain up to the token.
        """
        if not self._bin_counts.any():
            return None
        sizes = np.maximum(self._bin_counts, 1)
        return Reliability(self._bin_counts, self._bin_predicted / sizes, self._bin_observed / sizes)

    def figures(self) -> dict[str, Any]:
        """Everything as JSON values; None for what cannot be said."""
        reliability = self.reliability()
        return {
            "documents": self.texts,
            "tokens": self.tokens,
            "steps": self.steps,
            "tokens_per_step": _ratio(self.tokens, self.steps),
            "drafted_per_step": _ratio(self.drafted, self.steps),
            "accepted_per_step": _ratio(self.accepted, self.steps),
            "acceptance_rate": _ratio(self.accepted, self.drafted),
            # as vLLM's metric of this name: of all chains, whether long enough or not
            "acceptance_by_position": [_ratio(count, self.chains) for count in self.accepted_at.tolist()],
            "observed_survival_by_position": _ratios(self.accepted_at, self.drafted_at),
            "predicted_survival_by_position": (
                None if reliability is None else _ratios(self.survival_at, self.drafted_at)
            ),
            "drafted_by_source": _shares(self.drafted_from),
            "accepted_by_source": _shares(self.accepted_from),
            "match_lengths": _histogram(self.matches),
            "lookup_microseconds": _percentiles(self.nanoseconds),
            "reliability": None if reliability is None else _reliability(reliability),
        }


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _ratios(numerators: npt.NDArray[Any], denominators: npt.NDArray[np.int64]) -> list[float | None]:
    return [_ratio(n, d) for n, d in zip(numerators.tolist(), denominators.tolist(), strict=True)]


def _shares(counts: npt.NDArray[np.int64]) -> dict[str, float] | None:
    """The share of each source, by its name; None if no source is known."""
    total = int(counts.sum())
    return {origin.name.lower(): int(counts[origin]) / total for origin in Origin} if total else None


def _histogram(counts: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    total = int(counts.sum())
    if not total:
        return None
    lengths = np.arange(len(counts))
    median = int(np.searchsorted(np.cumsum(counts), (total + 1) // 2))
    found = {str(length): int(counts[length]) for length in np.flatnonzero(counts)}
    return {"mean": float((lengths * counts).sum() / total), "median": median, "chains": found}


def _percentiles(nanoseconds: Sequence[int]) -> dict[str, float] | None:
    if not nanoseconds:
        return None
    median, p99 = np.percentile(nanoseconds, (50, 99)) / 1000
    return {"median": float(median), "p99": float(p99)}


def _reliability(reliability: Reliability) -> dict[str, Any]:
    return {
        "expected_calibration_error": reliability.expected_calibration_error,
        "bins": [
            {"from": i / NUM_BINS, "tokens": int(count), "predicted": float(p), "observed": float(o)}
            for i, (count, p, o) in enumerate(
                zip(reliability.counts, reliability.predicted, reliability.observed, strict=True)
            )
            if count
        ],
    }
