"""What a step of the engine costs, learned from the steps that were run.

Steps with about as many sequences, drafts and prompt tokens share a row of a table, which keeps their usual
time (in the logarithm, and of outliers only a part: on shared machines some steps take ten times as long).
A row keeps its time until such steps come again, and slowly loses weight. Forgetting old steps instead would
unlearn what steps without drafts cost while all steps have drafts.

To the table a sum of non-negative parts is fitted, so that it tells about loads that were never met: a
base, a part for every sequence, a part for there being drafts at all (verification replaces plain
sampling), a part for every draft and prompt token, and a rising curve over all tokens of the step, linear
between powers of two, for what is not linear: GPUs cost the same up to some number of tokens and more from
there on. Sampled sequences have parts of their own, as verifying them is more work. Parts that no step told
anything about are nothing: drafts cost what they were seen to cost.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.pool.kernels import CACHE

# The parts, in order; one for each ramp of the curve follows.
_BASE, _SEQUENCES, _SAMPLED, _ANY, _ANY_SEQUENCES, _ANY_SAMPLED, _DRAFTS, _PROMPT, _RAMPS = range(9)
KNOTS = np.array([16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], dtype=np.float64)
NUM_PARTS = _RAMPS + KNOTS.size - 1
# How strongly each part is held at nothing: where steps cannot tell two parts apart, the one that is held
# less explains them. That is relative to how often the part was met; in addition ramps are held a little in
# relation to the steps themselves, so that one that was barely touched is not taken for a cliff.
_RESTRAINT = np.array([1e-4, 1e-3, 1e-3, 3e-3, 3e-3, 3e-3, 1e-3, 1e-3, *[3e-3] * (KNOTS.size - 1)])
_RAMP_RESTRAINT = 1e-5

_MAX_ROWS = 128
# A row's time is a mean over about so many steps, of which those that lie so many steps back count half.
_ROW_STEPS, _ROW_HALF_LIFE = 32, 120
# A row that does not occur for so many steps counts half.
_HALF_LIFE = 4000
# In the logarithm: a slower step moves a row's time as if it had been slower by so much at most. One that is
# faster by more than so much replaces it: outliers are slow, so the row's time was one.
_SLOWER_LIMIT, _FASTER_LIMIT = 0.25, 1.0
# So many steps with drafts, and without, are not counted: kernels are compiled in them.
_FIRST_STEPS = 2
_STEPS_PER_FIT, _SWEEPS = 8, 12


@dataclass(frozen=True)
class StepLoad:
    """What a step had to do.

    Attributes:
        sequences: the requests in it; sampled: those of them with a temperature.
        drafts: draft tokens verified; prompt: prompt tokens beyond one for each sequence.
    """

    sequences: int
    sampled: int
    drafts: int
    prompt: int = 0

    def row_key(self) -> tuple[int, int, int, int]:
        """Which row of the table the step belongs to: half powers of two; whole ones for prompts."""
        return (
            round(2 * math.log2(self.sequences)),
            (self.sampled > 0) + (2 * self.sampled > self.sequences),
            round(2 * math.log2(self.drafts)) + 1 if self.drafts else 0,
            self.prompt.bit_length(),
        )


class StepCosts:
    """Predicts the seconds of a step; see the module."""

    def __init__(self) -> None:
        self.parts = np.zeros(NUM_PARTS)
        self._first_steps = [0, 0]
        self._steps = 0
        # Row of each key, the least recently used first.
        self._rows: dict[tuple[int, int, int, int], int] = {}
        self._loads = np.zeros((_MAX_ROWS, NUM_PARTS))
        self._log_seconds = np.zeros(_MAX_ROWS)
        self._counts = np.zeros(_MAX_ROWS)
        self._last_steps = np.zeros(_MAX_ROWS)

    @property
    def known(self) -> bool:
        """Whether a step has been observed."""
        return self._steps > 0

    def observe(self, seconds: float, load: StepLoad) -> None:
        """Learn from a step that took `seconds`, which must be positive."""
        self._first_steps[load.drafts > 0] += 1
        if self._first_steps[load.drafts > 0] <= _FIRST_STEPS:
            return
        row, is_new = self._row(load.row_key())
        self._counts[row] *= 0.5 ** ((self._steps - self._last_steps[row]) / _ROW_HALF_LIFE)
        _enter(
            row,
            math.log(seconds),
            load.sequences,
            load.sampled,
            load.drafts,
            load.prompt,
            self._loads,
            self._log_seconds,
            self._counts,
        )
        self._last_steps[row] = self._steps
        if is_new or self._steps % _STEPS_PER_FIT == 0:
            _fit(
                self._loads[: len(self._rows)],
                self._log_seconds,
                self._counts,
                self._last_steps - self._steps,
                self.parts,
            )
        self._steps += 1

    def curve(self, sequences: int, sampled: int, most: int) -> npt.NDArray[np.float64]:
        """float64[most + 1], the predicted seconds of a step with 0, 1, …, `most` draft tokens."""
        seconds = np.empty(most + 1)
        _predict(self.parts, sequences, sampled, seconds)
        return seconds

    def _row(self, key: tuple[int, int, int, int]) -> tuple[int, bool]:
        row = self._rows.pop(key, None)
        is_new = row is None
        if row is None:
            row = len(self._rows)
            if row == _MAX_ROWS:
                row = self._rows.pop(next(iter(self._rows)))
            self._counts[row] = 0
        self._rows[key] = row
        return row, is_new


@njit(cache=CACHE, nogil=True)
def _describe(sequences, sampled, drafts, prompt, load):  # type: ignore[no-untyped-def]
    """How often each part occurs in a step."""
    any_drafts = 1.0 if drafts > 0 else 0.0
    load[_BASE] = 1.0
    load[_SEQUENCES] = sequences
    load[_SAMPLED] = sampled
    load[_ANY] = any_drafts
    load[_ANY_SEQUENCES] = any_drafts * sequences
    load[_ANY_SAMPLED] = any_drafts * sampled
    load[_DRAFTS] = drafts
    load[_PROMPT] = prompt
    tokens = sequences + drafts + prompt
    for i in range(KNOTS.size - 1):
        ramp = (tokens - KNOTS[i]) / (KNOTS[i + 1] - KNOTS[i])
        load[_RAMPS + i] = min(max(ramp, 0.0), 1.0)


@njit(cache=CACHE, nogil=True)
def _enter(row, log_seconds, sequences, sampled, drafts, prompt, loads, usual, counts):  # type: ignore[no-untyped-def]
    """Move a row of the table towards a step."""
    load = np.empty(NUM_PARTS)
    _describe(sequences, sampled, drafts, prompt, load)
    counts[row] = min(counts[row] + 1.0, _ROW_STEPS)
    if log_seconds < usual[row] - _FASTER_LIMIT:
        counts[row] = 1.0
    step = 1.0 / counts[row]
    if counts[row] == 1.0:
        usual[row] = log_seconds
    else:
        usual[row] += step * min(log_seconds - usual[row], _SLOWER_LIMIT)
    for i in range(NUM_PARTS):
        loads[row, i] += step * (load[i] - loads[row, i])


@njit(cache=CACHE, nogil=True)
def _fit(loads, log_seconds, counts, ages, parts):  # type: ignore[no-untyped-def]
    """Non-negative least squares of relative errors, by coordinate descent from where `parts` are."""
    square = np.zeros((NUM_PARTS, NUM_PARTS))
    goal = np.zeros(NUM_PARTS)
    relative = np.empty(NUM_PARTS)
    for row in range(loads.shape[0]):
        weight = counts[row] * 2.0 ** (ages[row] / _HALF_LIFE)
        for i in range(NUM_PARTS):
            relative[i] = loads[row, i] * math.exp(-log_seconds[row])
        for i in range(NUM_PARTS):
            goal[i] += weight * relative[i]
            for j in range(NUM_PARTS):
                square[i, j] += weight * relative[i] * relative[j]
    for _ in range(_SWEEPS):
        for i in range(NUM_PARTS):
            if square[i, i] == 0.0:
                parts[i] = 0.0
                continue
            rest = goal[i]
            for j in range(NUM_PARTS):
                if j != i:
                    rest -= square[i, j] * parts[j]
            restraint = _RESTRAINT[i] * square[i, i]
            if i >= _RAMPS:
                restraint += _RAMP_RESTRAINT * square[_BASE, _BASE]
            parts[i] = max(rest / (square[i, i] + restraint), 0.0)


@njit(cache=CACHE, nogil=True)
def _predict(parts, sequences, sampled, seconds):  # type: ignore[no-untyped-def]
    load = np.empty(NUM_PARTS)
    _describe(sequences, sampled, 0, 0, load)
    seconds[0] = 0.0
    for i in range(NUM_PARTS):
        seconds[0] += load[i] * parts[i]
    with_drafts = parts[_BASE] + parts[_ANY]
    with_drafts += (parts[_SEQUENCES] + parts[_ANY_SEQUENCES]) * sequences
    with_drafts += (parts[_SAMPLED] + parts[_ANY_SAMPLED]) * sampled
    ramp, climbed = 0, 0.0
    for drafts in range(1, seconds.size):
        tokens = sequences + drafts
        while ramp < KNOTS.size - 1 and tokens >= KNOTS[ramp + 1]:
            climbed += parts[_RAMPS + ramp]
            ramp += 1
        curve = climbed
        if ramp < KNOTS.size - 1 and tokens > KNOTS[ramp]:
            curve += parts[_RAMPS + ramp] * (tokens - KNOTS[ramp]) / (KNOTS[ramp + 1] - KNOTS[ramp])
        seconds[drafts] = with_drafts + parts[_DRAFTS] * drafts + curve
