"""How many draft tokens are worth verifying at this load.

A step with B sequences and m draft tokens writes B tokens and, on average, the sum of the drafts' survival
probabilities. Survival never rises along a chain, so the m most probable draft tokens of the whole batch
are the beginnings of chains, and no other m tokens promise more. With T(m) the seconds of such a step,
look-up included, the budget sends the m tokens that maximise

    (B + s_1 + … + s_m) / T(m),    s_1 >= s_2 >= … the survivals of the batch.

On an idle GPU T hardly rises and whole chains go out; where verification costs, the tokens that pay do, be
it a few from every chain or all from one. T and what survivals are worth are learned while serving:
`vllm_dare.drafting.step_costs` and `vllm_dare.drafting.calibration`. What is never tried is never learned,
so now and then a step tries another number; such steps may cost 0.5 % of the time. Where drafts do not
even pay for their look-up, it rests and is tried again now and then.

Which drafts are sent is no matter of correctness. Where the text depends on it all the same, because a seed
is to give the same text again, chains are sent whole: a request draws as many random numbers as it has
drafts. Their cost counts, and leaves less for the others.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.drafting.calibration import Calibration
from vllm_dare.drafting.step_costs import StepCosts
from vllm_dare.pool.kernels import CACHE

# Greedy or sampled, times strict or relaxed.
NUM_KINDS = 4

# The share of time that steps which try something may cost, and what they may cost at the start, in steps.
_TRIAL_SHARE = 0.005
_FIRST_TRIALS = 2.0
_DEAREST_TRIAL = 4.0
# Worth is a mean over so many steps; look-ups rest for between so many.
_WORTH_STEPS = 32
_SHORTEST_REST, _LONGEST_REST = 4, 64
_LOOK_UP_STEPS = 20
# A step has at most so many times the drafts of any before it: what those cost is not known yet.
_GROWTH = 4
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def kind_of(sampled: bool, relaxed: bool) -> int:
    """The kind of a request, as `DraftBudget.choose` takes it."""
    return sampled + 2 * relaxed


class DraftBudget:
    """Chooses how much of each chain is sent; tell it what became of every step.

    A pure function of what it was told: it looks at no clock.

    Attributes:
        costs: what steps cost; tell it with `costs.observe`.
        calibration: what survivals are worth; tell it with `calibration.observe`.
    """

    def __init__(self) -> None:
        self.costs = StepCosts()
        self.calibration = Calibration(NUM_KINDS)
        self._look_up = 0.0  # seconds per sequence
        # Of the step at hand, see `_set_apart` and `_appraise`.
        self._ranked = np.empty(0, dtype=np.float32)
        self._tokens, self._seconds = np.empty(0), np.empty(0)
        self._largest = 0  # number of drafts sent in a step so far
        # What trials may cost by now, in seconds; None before the first step.
        self._allowance: float | None = None
        self._trials = 0
        # What drafting saves, in steps without drafts; below 0, look-ups rest.
        self._worth = 1.0
        self._rest_length, self._rest_left = _SHORTEST_REST, 0
        self._rested = 0  # steps since the last look-up

    @property
    def resting(self) -> bool:
        """Whether look-ups rest at present."""
        return self._rest_left > 0

    def rests(self) -> bool:
        """Whether this step should do without a look-up; to be asked once a step."""
        if self._rest_left == 0:
            return False
        self._rest_left -= 1
        self._rested += 1
        return True

    def choose(
        self,
        survivals: npt.NDArray[np.float32],
        lengths: npt.NDArray[np.int64],
        kinds: npt.NDArray[np.int64],
        whole: npt.NDArray[np.bool_],
        look_up_seconds: float,
    ) -> npt.NDArray[np.int64]:
        """How many tokens of each chain to send.

        Args:
            survivals: float32[sequences, K], the probability that a chain is right up to and including
                each token, non-increasing; anything beyond a chain's length.
            lengths: int64[sequences], of the chains.
            kinds: int64[sequences], see `kind_of`.
            whole: bool[sequences], the chains that are sent whole whatever they cost.
            look_up_seconds: what finding these drafts took.

        Returns:
            int64[sequences], at most `lengths`.
        """
        self._look_up += (look_up_seconds / len(kinds) - self._look_up) / _LOOK_UP_STEPS
        corrected = self.calibration.correct(survivals, lengths, kinds)
        chosen = np.zeros(len(kinds), dtype=np.int64)
        if self._tokens.size <= survivals.size:
            self._ranked = np.empty(survivals.size, dtype=np.float32)
            self._tokens, self._seconds = np.empty(survivals.size + 1), np.empty(survivals.size + 1)
        most, certain, sampled, promised = _set_apart(corrected, lengths, kinds, whole, chosen, self._ranked)
        self._ranked[:most].sort()
        number = min(most, _GROWTH * max(self._largest, len(kinds)))
        if self.costs.known:
            plain = self.costs.curve(len(kinds), sampled, certain + most)
            look_up = self._look_up * len(kinds)
            best = _appraise(
                plain[certain:], look_up, promised, number, self._ranked, self._tokens, self._seconds
            )
            number = self._choose_number(best, number, plain[0], certain > 0)
        self._largest = max(self._largest, number)
        if number > 0:
            _cut(corrected, lengths, whole, -self._ranked[number - 1], number, chosen)
        return chosen

    def _choose_number(self, best: int, most: int, plain: float, must_look: bool) -> int:
        """How many of the tokens that may go out, at most `most`, if `best` of them pay best.

        Args:
            plain: the seconds of a step that does without the look-up; must_look: whether it cannot.
        """
        tokens, seconds = self._tokens, self._seconds
        if not must_look:
            self._rest_if_worthless(tokens[best] / tokens[0] - seconds[best] / plain)
        return self._try_another(best, most)

    def _rest_if_worthless(self, saved: float) -> None:
        """Let look-ups rest where they cost more than they save, each time for longer."""
        if self._worth < 0:  # this step is the look after a rest
            self._worth = saved
            self._rest_length = _SHORTEST_REST if saved > 0 else min(2 * self._rest_length, _LONGEST_REST)
        else:
            self._worth += (min(saved, 1.0) - self._worth) / _WORTH_STEPS
        self._rest_left = self._rest_length if self._worth < 0 else 0

    def _try_another(self, best: int, most: int) -> int:
        """The best number, or the next one to be tried if what that loses has been saved up."""
        tokens, seconds = self._tokens, self._seconds
        if self._allowance is None:
            self._allowance = _FIRST_TRIALS * seconds[best]
        self._allowance += _TRIAL_SHARE * (self._rested + 1) * seconds[best]
        self._rested = 0
        number = self._next_trial(most)
        if number == best:
            self._trials += 1
            return best
        # What looks very dear may have been slow for once.
        loss = min(
            seconds[number] - tokens[number] * seconds[best] / tokens[best], _DEAREST_TRIAL * seconds[best]
        )
        if loss > self._allowance:
            return best
        self._allowance -= loss
        self._trials += 1
        return number

    def _next_trial(self, most: int) -> int:
        """In turn no drafts at all and some number, these spread evenly on a logarithmic scale."""
        if self._trials % 2 == 0 or most == 0:
            return 0
        exponent = self._trials * _GOLDEN_RATIO % 1
        return round(math.pow(most, exponent))


@njit(cache=CACHE, nogil=True)
def _set_apart(survivals, lengths, kinds, whole, chosen, ranked):  # type: ignore[no-untyped-def]
    """Tell the drafts that go out in any case from those to choose among.

    Args:
        chosen: int64[sequences], receives the lengths of the chains that go out whole.
        ranked: float32[any], receives the survivals of all other drafts, negative, in any order.

    Returns:
        (other drafts, drafts that go out in any case, sampled sequences, tokens that a step without the
        others writes on average).
    """
    most, certain, sampled, promised = 0, 0, 0, float(kinds.size)
    for i in range(kinds.size):
        sampled += kinds[i] & 1
        if whole[i]:
            chosen[i] = lengths[i]
            certain += lengths[i]
        for j in range(lengths[i]):
            if whole[i]:
                promised += survivals[i, j]
            else:
                ranked[most] = -survivals[i, j]
                most += 1
    return most, certain, sampled, promised


@njit(cache=CACHE, nogil=True)
def _appraise(plain, look_up, promised, most, ranked, tokens, seconds):  # type: ignore[no-untyped-def]
    """What a step with 0, 1, … `most` of the likeliest drafts promises and costs; returns which pays best.

    Args:
        plain: float64[> most], seconds of such steps without `look_up`, also in seconds.
        promised: tokens that the step writes on average without any of them.
        ranked: float32[>= most], their survivals, negative, rising.
        tokens, seconds: float64[> most], receive the result.
    """
    best = 0
    for number in range(most + 1):
        if number > 0:
            promised -= ranked[number - 1]
        tokens[number] = promised
        seconds[number] = plain[number] + look_up
        if promised * seconds[best] > tokens[best] * seconds[number]:
            best = number
    return best


@njit(cache=CACHE, nogil=True)
def _cut(survivals, lengths, whole, least, number, chosen):  # type: ignore[no-untyped-def]
    """Add to `chosen` the `number` tokens that survive with `least` or more, of equal ones the first."""
    above = 0
    for i in range(lengths.size):
        for j in range(0 if whole[i] else lengths[i]):
            if survivals[i, j] <= least:
                break
            above += 1
    ties = number - above
    for i in range(lengths.size):
        for j in range(0 if whole[i] else lengths[i]):
            if survivals[i, j] < least:
                break
            if survivals[i, j] == least:
                if ties == 0:
                    break
                ties -= 1
            chosen[i] += 1
