"""What the draft budget is told about vLLM's steps."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm_dare.drafting.step_costs import StepLoad
from vllm_dare.engine.pacing import DraftPacing

CHAIN = 4


class Reports:
    """Stands in for the budget: sends all, and keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, StepLoad]] = []
        self.verified: list[tuple[list[int], list[int], list[int]]] = []
        self.costs = SimpleNamespace(observe=lambda seconds, load: self.steps.append((seconds, load)))
        self.calibration = SimpleNamespace(observe=self._observe)
        self.at_rest = False

    def _observe(self, _survivals: Any, kinds: Any, verified: Any, accepted: Any) -> None:
        self.verified.append((kinds.tolist(), verified.tolist(), accepted.tolist()))

    def choose(self, _survivals: Any, lengths: Any, *_: Any) -> Any:
        return lengths

    def resting(self, _sequences: int) -> bool:
        return self.at_rest

    def rests(self) -> bool:
        return True


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def pacing(reports: Reports) -> DraftPacing:
    pacing = DraftPacing()
    pacing.budget = reports  # type: ignore[assignment]
    return pacing


def send(pacing: DraftPacing, requests: list[object], lengths: list[int], at: float = 0.0) -> None:
    kinds = np.zeros(len(requests), dtype=np.int64)
    survivals = np.full((len(requests), CHAIN), 0.5, dtype=np.float32)
    pacing.send(requests, kinds, survivals, np.array(lengths), kinds < 0, at, 1e-5)


def end(
    pacing: DraftPacing,
    requests: list[object],
    scheduled: list[int],
    written: list[int],
    at: float = 1.0,
    waiting: int = 0,
    kinds: list[int] | None = None,
) -> None:
    """A step of these requests, and one more whose prompt of `waiting` tokens is not done."""
    pacing.step_ended(
        at,
        requests,
        np.array(kinds or [0] * len(requests)),
        np.array(scheduled),
        np.array(written),
        len(requests) + (waiting > 0),
        sum(scheduled) + waiting,
    )


A, B, C = (SimpleNamespace() for _ in range(3))


def test_a_step_is_timed_from_sending_to_its_end(pacing: DraftPacing, reports: Reports) -> None:
    send(pacing, [A, B], [4, 2], at=10.0)
    end(pacing, [A, B], [5, 3], [2, 3], at=10.5)
    assert reports.steps == [(0.5, StepLoad(2, 0, 6, 0))]
    assert reports.verified == [([0, 0], [4, 2], [1, 2])]


def test_drafts_that_the_scheduler_left_out_were_not_verified(pacing: DraftPacing, reports: Reports) -> None:
    send(pacing, [A, B], [4, 4])
    end(pacing, [A, B], [1, 3], [1, 1])
    assert reports.steps == [(1.0, StepLoad(2, 0, 2, 0))]
    assert reports.verified == [([0, 0], [0, 2], [0, 0])]


def test_requests_may_change_places(pacing: DraftPacing, reports: Reports) -> None:
    send(pacing, [A, B, C], [4, 0, 2])
    end(pacing, [C, A], [3, 5], [3, 1])
    assert reports.verified == [([0, 0], [2, 4], [2, 0])]


def test_prompts_are_no_drafts(pacing: DraftPacing, reports: Reports) -> None:
    """B has just begun with a prompt of 3, another one is not done with its 100."""
    send(pacing, [A], [4])
    end(pacing, [A, B], [5, 3], [5, 1], waiting=100)
    assert reports.steps == [(1.0, StepLoad(3, 0, 4, 101))]
    assert reports.verified == [([0], [4], [4])]


def test_a_request_that_starts_again_has_a_prompt(pacing: DraftPacing, reports: Reports) -> None:
    send(pacing, [A, B], [4, 2])
    end(pacing, [A, B], [5, 200], [1, 1])
    assert reports.steps == [(1.0, StepLoad(2, 0, 4, 199))]


def test_waiting_for_requests_is_no_step(pacing: DraftPacing, reports: Reports) -> None:
    send(pacing, [A], [4])
    end(pacing, [B], [7], [1], at=3600.0)
    end(pacing, [B], [1], [1], at=3601.0)
    assert reports.steps == []


def test_sampled_requests_are_counted(pacing: DraftPacing, reports: Reports) -> None:
    send(pacing, [A, B, C], [0, 0, 0])
    end(pacing, [A, B, C], [1, 1, 1], [1, 1, 1], kinds=[0, 1, 3])
    assert reports.steps == [(1.0, StepLoad(3, 2, 0, 0))]
    assert reports.verified == []


def test_a_step_without_a_look_up_is_timed_too(pacing: DraftPacing, reports: Reports) -> None:
    assert not pacing.rests([A], np.array([0]), np.array([False]), at=0.0)
    reports.at_rest = True
    assert not pacing.rests([A, B], np.array([0, 0]), np.array([False, True]), at=1.0)
    assert pacing.rests([A], np.array([0]), np.array([False]), at=2.0)
    end(pacing, [A], [1], [1], at=5.0)
    assert reports.steps == [(3.0, StepLoad(1, 0, 0, 0))]


def test_after_a_failed_look_up_it_goes_on(pacing: DraftPacing, reports: Reports) -> None:
    """The step whose drafts were never sent is not reported."""
    send(pacing, [A], [4])
    end(pacing, [A], [5], [5])
    end(pacing, [A], [1], [1])
    send(pacing, [A], [4], at=2.0)
    end(pacing, [A], [5], [3], at=3.0)
    assert [load for _, load in reports.steps] == [StepLoad(1, 0, 4, 0)] * 2
