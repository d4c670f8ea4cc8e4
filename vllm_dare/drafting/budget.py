"""How many draft tokens are worth verifying at this load.

A step with B sequences and m draft tokens writes B tokens and, on average, the sum of the drafts' survival
probabilities. Survival never rises along a chain, so the m most probable draft tokens of the whole batch
are the beginnings of chains, and no other m tokens promise more. With T(m) the seconds of such a step,
look-up included, the budget sends the m tokens that maximise

    (B + s_1 + … + s_m) / T(m),    s_1 >= s_2 >= … the survivals of the batch.

On an idle GPU T hardly rises and whole chains go out; where verification costs, the tokens that pay do, be
it a few from every chain or all from one. T and what survivals are worth are learned while serving:
`vllm_dare.drafting.step_costs` and `vllm_dare.drafting.calibration`.

What is never tried is never learned, and what was slow may have been slow by chance. So whatever was not done
for a while is tried, be it a step with drafts, without, or with another number of them: soon at first, then
after twice as many steps each time, in the end every 256; soon again when costs turn out to have been wrong.
Where drafts do not even pay for their look-up, only those steps look. All that goes by the number of
sequences.

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

# What a step may try: to go without drafts, with drafts, with another number of them.
_PLAIN, _DRAFTS, _LENGTH = range(3)
# What was not done for so many steps is tried; then it is for so many times as many, up to a limit. Steps
# without drafts come up least often: they lose most where drafts pay, and believing them too slow does no
# harm there.
_FIRST_GAPS, _GROWING, _LAST_GAP = (1, 2, 2), (4, 2, 2), 256
# Drafts are not given up before so many steps had some.
_ENOUGH_STEPS = 3
# Where no drafts seem to pay, or nothing is known, those that are right more often than not are tried: where
# drafts are bad, they are few.
_LIKELY = 0.5
# Worth is a mean over so many steps.
_WORTH_STEPS = 32
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
        self._trials = 0  # of other numbers
        self._surprises = 0  # as of the last step
        self._loads: dict[int, _Load] = {}  # by the power of two of sequences
        self._load = _Load()

    def resting(self, sequences: int) -> bool:
        """Whether look-ups rest at present, with so many sequences."""
        self._load = self._at(sequences)
        return self._load.worth < 0

    def rests(self) -> bool:
        """Whether this step should do without a look-up; to be asked once a step while they rest."""
        if self._load.due(_DRAFTS):
            return False
        self._load.step_has(_PLAIN)
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
        self._load = self._at(len(kinds))
        corrected = self.calibration.correct(survivals, lengths, kinds)
        chosen = np.zeros(len(kinds), dtype=np.int64)
        if self._tokens.size <= survivals.size:
            self._ranked = np.empty(survivals.size, dtype=np.float32)
            self._tokens, self._seconds = np.empty(survivals.size + 1), np.empty(survivals.size + 1)
        most, likely, certain, sampled, promised = _set_apart(
            corrected, lengths, kinds, whole, chosen, self._ranked
        )
        self._ranked[:most].sort()
        most_now = min(most, _GROWTH * max(self._largest, len(kinds)))
        number = likely = min(max(likely, 1), most_now)
        if self.costs.known:
            plain = self.costs.curve(len(kinds), sampled, certain + most)
            look_up = self._look_up * len(kinds)
            best = _appraise(
                plain[certain:], look_up, promised, most_now, self._ranked, self._tokens, self._seconds
            )
            number = self._choose_number(best, likely, most_now, plain[0], certain > 0)
        self._largest = max(self._largest, number)
        self._load.step_has(_DRAFTS if number > 0 else _PLAIN)
        if number > 0:
            _cut(corrected, lengths, whole, -self._ranked[number - 1], number, chosen)
        return chosen

    def _choose_number(self, best: int, likely: int, most: int, plain: float, must_look: bool) -> int:
        """How many of the tokens that may go out, at most `most`, if `best` of them pay best.

        Args:
            likely: a number worth trying; plain: the seconds of a step that does without the look-up;
            must_look: whether it cannot.
        """
        if most > 0 and self.costs.steps_with_drafts < (_ENOUGH_STEPS if best == 0 else 1):
            return likely
        load, again = self._load, False
        if not must_look:
            again = load.worth < 0  # this step is the look after a rest
            load.judge(self._tokens[best] / self._tokens[0] - self._seconds[best] / plain)
        if best == 0:
            return likely if again or load.due(_DRAFTS) else 0
        if load.due(_PLAIN):
            return 0
        return self._another_number(best, likely, most) if load.due(_LENGTH) else best

    def _another_number(self, best: int, likely: int, most: int) -> int:
        """In turn the likely tokens and some number around the best, spread evenly on a logarithmic scale."""
        self._trials += 1
        if self._trials % 2 == 0:
            return likely
        exponent = 2 * (self._trials * _GOLDEN_RATIO % 1) - 1
        return min(max(round(best * math.pow(_GROWTH, exponent)), 1), most)

    def _at(self, sequences: int) -> "_Load":
        """What is known of a load; where costs turned out to be wrong, everything is tried soon again."""
        load = self._loads.get(sequences.bit_length())
        if load is None:
            load = self._loads[sequences.bit_length()] = _Load()
        if self.costs.surprises != self._surprises:
            self._surprises = self.costs.surprises
            load.gaps = list(_FIRST_GAPS)
        return load


class _Load:
    """When steps with about as many sequences did what, and what drafting saves them.

    Attributes:
        worth: what drafting saves, in steps without drafts; below 0, look-ups rest.
        gaps: of each thing to try, after how many steps without it.
    """

    def __init__(self) -> None:
        self.worth = 0.0
        self.gaps = list(_FIRST_GAPS)
        self._judged = 0  # steps in `worth`
        self._step, self._last = 0, [0, 0, 0]  # this step, and the last one of each thing to try

    def due(self, what: int) -> bool:
        """Whether to try something now; if so, it is next tried after a longer time."""
        if self._step - self._last[what] < self.gaps[what]:
            return False
        self._last[what] = self._step
        self.gaps[what] = min(_GROWING[what] * self.gaps[what], _LAST_GAP)
        return True

    def step_has(self, what: int) -> None:
        """Count a step with or without drafts."""
        self._last[what] = self._step
        self._step += 1

    def judge(self, saved: float) -> None:
        """Learn what drafting saves in a step; the look after a rest decides alone."""
        if self.worth < 0:
            self.worth = saved
        else:
            self._judged = min(self._judged + 1, _WORTH_STEPS)
            self.worth += (min(saved, 1.0) - self.worth) / self._judged


@njit(cache=CACHE, nogil=True)
def _set_apart(survivals, lengths, kinds, whole, chosen, ranked):  # type: ignore[no-untyped-def]
    """Tell the drafts that go out in any case from those to choose among.

    Args:
        chosen: int64[sequences], receives the lengths of the chains that go out whole.
        ranked: float32[any], receives the survivals of all other drafts, negative, in any order.

    Returns:
        (other drafts, how many of them are likely, drafts that go out in any case, sampled sequences,
        tokens that a step without the others writes on average).
    """
    most, likely, certain, sampled, promised = 0, 0, 0, 0, float(kinds.size)
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
                likely += survivals[i, j] >= _LIKELY
    return most, likely, certain, sampled, promised


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
