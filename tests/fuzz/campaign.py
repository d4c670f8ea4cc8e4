"""Numbered cases, run in child processes: a crash or a hang ends a child, and is known by its number."""

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from threadpoolctl import threadpool_limits

BATCH = 2000
HANG_SECONDS = 120.0  # on a busy machine, a case may wait long for its turn
_LINES = 20  # of a traceback that are kept
_SHOWN = 40  # outcomes
_PR_SET_THP_DISABLE = 41
_M_MMAP_THRESHOLD = -3


@dataclass(frozen=True)
class Result:
    """How a case went that found no fault.

    Attributes:
        outcome: what it is counted as.
        excess: how many bytes of memory it took beyond what it may; below 0 as a rule.
        factor: how many times its input's size it took in memory, for inputs of which that says something.
    """

    outcome: str
    excess: float = 0.0
    factor: float = 0.0


@dataclass
class Report:
    """What a campaign found.

    Attributes:
        outcomes: how many cases went how.
        faults: case number to what went wrong.
        factor: the largest of the cases.
        seconds: how long it took.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    factor: float = 0.0
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        cases = self.outcomes.total() + len(self.faults)
        yield f"{cases:,} cases in {self.seconds:.0f} s, {cases / max(self.seconds, 1e-9):.0f} a second"
        for outcome, count in self.outcomes.most_common(_SHOWN):
            yield f"  {count:9,}  {outcome}"
        others = self.outcomes.most_common()[_SHOWN:]
        yield f"  {sum(count for _, count in others):9,}  {len(others)} others"
        yield f"  {len(self.faults):9,}  faults"


def run_cases(
    one: Callable[[int], Result],
    numbers: Sequence[int],
    *,
    most_seconds: float = float("inf"),
    most_faults: int = 20,
) -> Report:
    """Run cases, 2,000 a child.

    Args:
        one: runs the case of a number; what it raises is a fault.
        numbers: which.
        most_seconds, most_faults: the run ends early after so long, or at so many.
    """
    report, began, waiting = Report(), time.monotonic(), list(numbers)
    while waiting and len(report.faults) < most_faults and time.monotonic() - began < most_seconds:
        batch, waiting = waiting[:BATCH], waiting[BATCH:]
        done = _run_batch(one, batch, report)
        waiting = batch[done:] + waiting
    report.seconds = time.monotonic() - began
    return report


def _run_batch(one: Callable[[int], Result], batch: Sequence[int], report: Report) -> int:
    """Run a batch in a child; returns how many of its cases are over, the one that ended it included."""
    context = multiprocessing.get_context("fork")
    place = context.RawValue("q", 0)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(one, batch, place, sender))
    child.start()
    sender.close()
    seen, since, answers = -1, time.monotonic(), []
    while True:
        if receiver.poll(0.2):
            try:
                answers.append(receiver.recv())
            except EOFError:
                break
        if place.value != seen:
            seen, since = place.value, time.monotonic()
        elif time.monotonic() - since > HANG_SECONDS:
            os.kill(child.pid or 0, signal.SIGKILL)
            break
    child.join()
    for counts, faults, factor in answers:
        report.outcomes.update(counts)
        report.faults.update(faults)
        report.factor = max(report.factor, factor)
    if child.exitcode == 0:
        return len(batch)
    why = "hangs" if child.exitcode == -signal.SIGKILL else f"ends the process ({child.exitcode})"
    report.faults[batch[place.value]] = why
    # What was counted in the child went with it.
    report.outcomes["in a child that a fault ended"] += place.value - sum(
        counts.total() + len(faults) for counts, faults, _ in answers
    )
    return int(place.value) + 1


def _child(one: Callable[[int], Result], batch: Sequence[int], place: Any, sender: Connection) -> None:
    counts: Counter[str] = Counter()
    faults: dict[int, str] = {}
    factor = 0.0
    # Else a page that is touched in a large empty array counts as two megabytes, or as all of it.
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)
    # OpenMP's threads do not survive a fork, and the parent may have sorted with them.
    threadpool_limits(1, user_api="openmp")
    for i, number in enumerate(batch):
        place.value = i
        try:
            result = one(number)
        except Exception:
            faults[number] = "\n".join(traceback.format_exc().splitlines()[-_LINES:])
            continue
        counts[result.outcome] += 1
        factor = max(factor, result.factor)
        if result.excess > 0:
            faults[number] = f"takes {result.excess / 1e6:.1f} MB more than it may"
            counts[result.outcome] -= 1
    sender.send((counts, faults, factor))
    sender.close()
    os._exit(0)  # without the clean-up that is the parent's


class PeakMemory:
    """The most memory that this process has, over what it had when this was made; Linux alone tells."""

    def __init__(self) -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # begin a new peak
        self._before = _status("VmRSS:")

    def bytes(self) -> int:
        return _status("VmHWM:") - self._before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        content = file.read()
    place = content.index(name) + len(name)
    return int(content[place : content.index("kB", place)]) * 1024
