"""What a step of the engine costs, learned from the steps that were run.

Steps with about as many sequences, drafts and prompt tokens share a row of a table, which keeps their usual
time: the median of its last steps, since on shared machines some steps take ten times as long. Rows keep
their times until such steps come again, and slowly lose weight. Forgetting old steps instead would unlearn
what steps without drafts cost while all steps have drafts.

What matters is what drafts cost compared with none, and the two are not measured at the same moment. So
times are divided by the pace of the machine, by which the last steps were slower than their rows say: a
machine that gets slower must not look like drafts that get dearer. And a step much faster than its row says
means that the row was measured while the machine was slow. So may have been all that is known of about as
many sequences; it is forgotten.

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
# A row's time is the lower median of so many steps: outliers are slow.
_ROW_STEPS = 15
# The pace is the median of so many steps, of rows that have at least so many. It changes by more than this
# (in the logarithm) or not at all: a row that is a little wrong must learn that, not take it for a pace.
_PACE_STEPS, _SETTLED_ROW, _PACE_CHANGE = 9, 5, 0.3
# A row that does not occur for so many steps counts half.
_HALF_LIFE = 4000
# In the logarithm: a step is much faster than its row says from here on.
_MUCH_FASTER = 1.0
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
    """Predicts the seconds of a step; see the module.

    Attributes:
        steps_with_drafts: how many such steps it knows.
        surprises: how often it forgot what it knew of a load.
    """

    def __init__(self) -> None:
        self.parts = np.zeros(NUM_PARTS)
        self.steps_with_drafts, self.surprises = 0, 0
        self._steps = 0
        # Row of each key, the least recently used first.
        self._rows: dict[tuple[int, int, int, int], int] = {}
        self._loads = np.zeros((_MAX_ROWS, NUM_PARTS))
        # Logarithms of seconds at pace 0: of the row's last steps, in a ring, and their median.
        self._recent = np.zeros((_MAX_ROWS, _ROW_STEPS))
        self._usual = np.zeros(_MAX_ROWS)
        self._counts = np.zeros(_MAX_ROWS, dtype=np.int64)
        self._last_steps = np.zeros(_MAX_ROWS)
        # By how much the last steps were slower than their rows say, and the pace, in the logarithm.
        self._slower, self._pace = np.zeros(_PACE_STEPS), 0.0

    @property
    def known(self) -> bool:
        """Whether a step has been observed."""
        return self._steps > 0

    def observe(self, seconds: float, load: StepLoad) -> None:
        """Learn from a step that took `seconds`, which must be positive."""
        row = self._row(load.row_key())
        self._pace, much_faster = _enter(
            row,
            math.log(seconds),
            self._pace,
            load.sequences,
            load.sampled,
            load.drafts,
            load.prompt,
            self._loads,
            self._recent,
            self._usual,
            self._counts,
            self._slower,
        )
        self.steps_with_drafts += load.drafts > 0
        if much_faster and load.prompt == 0:
            self._forget_others(row)
        self._last_steps[row] = self._steps
        if self._counts[row] == 1 or self._steps % _STEPS_PER_FIT == 0:
            _fit(
                self._loads[: len(self._rows)],
                self._usual,
                self._counts,
                self._last_steps - self._steps,
                self.parts,
            )
        self._steps += 1

    def curve(self, sequences: int, sampled: int, most: int) -> npt.NDArray[np.float64]:
        """float64[most + 1], the predicted seconds of a step with 0, 1, …, `most` draft tokens."""
        seconds = np.empty(most + 1)
        _predict(self.parts, sequences, sampled, math.exp(self._pace), seconds)
        return seconds

    def _row(self, key: tuple[int, int, int, int]) -> int:
        row = self._rows.pop(key, None)
        if row is None:
            row = len(self._rows)
            if row == _MAX_ROWS:
                row = self._rows.pop(next(iter(self._rows)))
            self._counts[row] = 0
        self._rows[key] = row
        return row

    def _forget_others(self, row: int) -> None:
        """Forget what the table says of about as many sequences, but for this row."""
        rows = len(self._rows)
        sequences = self._loads[:rows, _SEQUENCES]
        near = (sequences < 2 * sequences[row]) & (sequences[row] < 2 * sequences)
        near[row] = False
        self._counts[:rows][near] = 0
        with_drafts = self._loads[:rows, _ANY] > 0
        self.steps_with_drafts = int(self._counts[:rows][with_drafts].sum())
        self.parts[:] = 0.0
        self.surprises += 1


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


@njit(inline="always")
def _median(values):  # type: ignore[no-untyped-def]
    """The lower one of an even number."""
    return np.sort(values)[(values.size - 1) // 2]


@njit(cache=CACHE, nogil=True)
def _enter(  # type: ignore[no-untyped-def]
    row, log_seconds, pace, sequences, sampled, drafts, prompt, loads, recent, usual, counts, slower
):
    """Add a step to a row of the table.

    Args:
        pace, slower, recent, usual, counts: see `StepCosts`.

    Returns:
        (the pace by now, whether the step was so much faster that the row begins anew).
    """
    load = np.empty(NUM_PARTS)
    _describe(sequences, sampled, drafts, prompt, load)
    if counts[row] >= _SETTLED_ROW and prompt == 0:  # prompts of a row differ
        slower[:-1] = slower[1:]
        slower[-1] = log_seconds - usual[row]
        median = _median(slower)
        if abs(median - pace) > _PACE_CHANGE:
            pace = median
    log_seconds -= pace
    much_faster = counts[row] > 0 and log_seconds < usual[row] - _MUCH_FASTER
    if much_faster:
        counts[row] = 0
    recent[row, counts[row] % _ROW_STEPS] = log_seconds
    counts[row] += 1
    number = min(counts[row], _ROW_STEPS)
    usual[row] = _median(recent[row, :number])
    for i in range(NUM_PARTS):
        loads[row, i] += (load[i] - loads[row, i]) / number
    return pace, much_faster


@njit(cache=CACHE, nogil=True)
def _fit(loads, log_seconds, counts, ages, parts):  # type: ignore[no-untyped-def]
    """Non-negative least squares of relative errors, by coordinate descent from where `parts` are."""
    square = np.zeros((NUM_PARTS, NUM_PARTS))
    goal = np.zeros(NUM_PARTS)
    relative = np.empty(NUM_PARTS)
    for row in range(loads.shape[0]):
        weight = min(counts[row], _ROW_STEPS) * 2.0 ** (ages[row] / _HALF_LIFE)
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
def _predict(parts, sequences, sampled, slower, seconds):  # type: ignore[no-untyped-def]
    load = np.empty(NUM_PARTS)
    _describe(sequences, sampled, 0, 0, load)
    seconds[0] = 0.0
    for i in range(NUM_PARTS):
        seconds[0] += load[i] * parts[i]
    seconds[0] *= slower
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
        seconds[drafts] = slower * (with_drafts + parts[_DRAFTS] * drafts + curve)
