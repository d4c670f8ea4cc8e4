"""Survival probabilities corrected by what verification accepted.

How often a draft token is right depends on more than the pool: a sampled request accepts a token with the
target's probability of it, a relaxed one accepts tokens that are not the target's choice. So the share of
accepted tokens is counted by the probability that was predicted for the token given that those before it
are right (`survivals[i, j] / survivals[i, j - 1]`), and by the kind of request. Only tokens that were
reached count: a chain says nothing about what comes after its first wrong token. The prediction itself
counts as some observations, and old observations fade.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.pool.kernels import CACHE

# Bins are narrow near 1, where a chain's survival depends on them most: bin b begins at 1 - 2^(-b / 2).
NUM_BINS = 16
_RESOLUTION = 1024
_BIN_OF = np.array(
    [min(int(-2 * np.log2(1 - i / _RESOLUTION)), NUM_BINS - 1) for i in range(_RESOLUTION)] + [NUM_BINS - 1]
)
# The prediction counts as so many observations; a bin remembers about so many.
_PRIOR_WEIGHT = 16.0
_MEMORY = 500.0


class Calibration:
    """Corrects predicted survival probabilities.

    Args:
        num_kinds: how many kinds of request are kept apart.
    """

    def __init__(self, num_kinds: int) -> None:
        self._reached = np.zeros((num_kinds, NUM_BINS))
        self._accepted = np.zeros((num_kinds, NUM_BINS))

    def observe(
        self,
        survivals: npt.NDArray[np.float32],
        kinds: npt.NDArray[np.int64],
        verified: npt.NDArray[np.int64],
        accepted: npt.NDArray[np.int64],
    ) -> None:
        """Learn from verified chains.

        Args:
            survivals: float32[chains, K], as predicted, before correction.
            kinds: int64[chains], of the requests.
            verified: int64[chains], how many tokens of each chain were verified; accepted: how many of
                those were accepted.
        """
        _count(survivals, kinds, verified, accepted, self._reached, self._accepted)

    def correct(
        self,
        survivals: npt.NDArray[np.float32],
        lengths: npt.NDArray[np.int64],
        kinds: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """float32[chains, K], the corrected survivals, non-increasing; 0 beyond a chain's length."""
        corrected = np.zeros_like(survivals)
        _correct(survivals, lengths, kinds, self._reached, self._accepted, corrected)
        return corrected


@njit(inline="always")
def _given_those_before(survivals, chain, position):  # type: ignore[no-untyped-def]
    """The predicted probability of a token given that those before it are right, and its bin."""
    before = survivals[chain, position - 1] if position > 0 else np.float32(1.0)
    probability = survivals[chain, position] / before if before > 0.0 else 0.0
    probability = min(max(probability, 0.0), 1.0)
    return probability, _BIN_OF[int(probability * _RESOLUTION)]


@njit(cache=CACHE, nogil=True)
def _count(survivals, kinds, verified, num_accepted, reached, accepted):  # type: ignore[no-untyped-def]
    for chain in range(kinds.size):
        kind = kinds[chain]
        for position in range(min(num_accepted[chain] + 1, verified[chain])):
            _, b = _given_those_before(survivals, chain, position)
            if reached[kind, b] >= _MEMORY:
                reached[kind, b] *= 1.0 - 1.0 / _MEMORY
                accepted[kind, b] *= 1.0 - 1.0 / _MEMORY
            reached[kind, b] += 1.0
            if position < num_accepted[chain]:
                accepted[kind, b] += 1.0


@njit(cache=CACHE, nogil=True)
def _correct(survivals, lengths, kinds, reached, accepted, corrected):  # type: ignore[no-untyped-def]
    for chain in range(kinds.size):
        kind = kinds[chain]
        surviving = 1.0
        for position in range(lengths[chain]):
            probability, b = _given_those_before(survivals, chain, position)
            surviving *= (accepted[kind, b] + _PRIOR_WEIGHT * probability) / (
                reached[kind, b] + _PRIOR_WEIGHT
            )
            corrected[chain, position] = surviving
