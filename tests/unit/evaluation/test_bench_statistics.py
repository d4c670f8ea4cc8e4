"""Figures, medians and agreement, worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from vllm_dare.evaluation.bench_statistics import Cell, Measurement, compared, measurement, spread, summarise
from vllm_dare.generation.meter import Counters, Figures

CELL = Cell("strict", 0.7, 4, 2)
TIMES = {"look_up_seconds": 0.5, "look_ups": 20, "step_seconds": 5.0}


def _row(row_id: int, tokens: list[int], reason: str = "stop") -> dict[str, Any]:
    return {"id": row_id, "token_ids": tokens, "finish_reason": reason}


def _measured(arm: str = "strict", repeat: int = 1, tokens_per_second: float | None = 10.0) -> Measurement:
    figures = Figures(2, 0, 6, 2.0, Counters(6, 3, 4, 3))
    found = measurement(
        replace(CELL, arm=arm, repeat=repeat), figures, [_row(1, [1]), _row(2, [2])], [1, 2], TIMES
    )
    return replace(found, tokens_per_second=tokens_per_second)


def test_the_figures_of_a_cell() -> None:
    rows = [_row(1, [1, 2]), _row(2, [1, 2, 3, 4]), _row(3, [], "error")]
    figures = Figures(rows=3, failed=1, completion_tokens=6, seconds=2.0, counters=Counters(6, 4, 10, 2))
    found = measurement(CELL, figures, rows, [1.0, 3.0, 0.001], TIMES)
    assert (found.arm, found.temperature, found.concurrency, found.repeat) == ("strict", 0.7, 4, 2)
    assert (found.rows, found.failed) == (3, 1)
    assert (found.tokens_per_second, found.documents_per_second) == (3.0, 1.0)
    assert found.document_seconds == 2.0, "the failed row, which took no time, does not count"
    assert found.document_seconds_p99 == pytest.approx(2.98)
    assert (found.tokens_per_step, found.drafted_per_step, found.acceptance) == (1.5, 2.5, 0.2)
    assert found.look_up_share == 0.1
    assert found.look_up_microseconds == 125_000.0
    assert (found.mean_tokens, found.mean_tokens_error) == (3.0, pytest.approx(1.0))


def test_plain_vllm_has_no_look_up() -> None:
    times = {"look_up_seconds": 0.0, "look_ups": 0, "step_seconds": 5.0}
    found = measurement(CELL, Figures(1, 0, 3, 1.0, Counters(3, 3)), [_row(1, [1, 2, 3])], [1.0], times)
    assert (found.look_up_share, found.look_up_microseconds, found.acceptance) == (None, None, None)
    assert found.mean_tokens_error is None, "one text has no spread"


def test_a_cell_in_which_all_failed() -> None:
    found = measurement(CELL, Figures(1, 1, 0, 1.0), [_row(1, [], "error")], [0.25], TIMES)
    assert (found.mean_tokens, found.tokens_per_step, found.document_seconds) == (None, None, 0.25)


def test_agreement_with_the_baseline() -> None:
    baseline = [_row(1, [1, 2, 3, 4]), _row(2, [5, 6])]
    texts = [_row(2, [5, 6]), _row(1, [1, 2, 9])]
    found = compared(_measured(), texts, baseline)
    assert found.same_texts == 0.5
    assert found.same_leading_tokens == pytest.approx((2 + 2) / (4 + 2))


def test_nothing_to_agree_with() -> None:
    assert compared(_measured(), [_row(1, [], "error")], [_row(1, [1])]).same_texts is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 1.0, 2.0], (2.0, 1.0, 3.0)),
        ([1.0, 4.0], (2.5, 1.0, 4.0)),
        ([None, 5.0], (5.0, 5.0, 5.0)),
    ],
)
def test_median_and_spread(values: list[float | None], expected: tuple[float, float, float]) -> None:
    assert spread(values) == dict(zip(("median", "low", "high"), expected, strict=True))


def test_no_values_have_no_spread() -> None:
    assert spread([]) is None
    assert spread([None, None]) is None


def test_speed_ups_are_taken_repeat_by_repeat() -> None:
    """The machine was half as fast in the second repeat, for both arms: the speed-up is what it was."""
    plain = [_measured("none", 1, 10.0), _measured("none", 2, 5.0)]
    fast = [_measured("strict", 1, 40.0), _measured("strict", 2, 20.0), _measured("strict", 3, 90.0)]
    base, summary = summarise([*plain, *fast])
    assert base["speed_up"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert summary["repeats"] == 3
    assert summary["speed_up"] == {"median": 4.0, "low": 4.0, "high": 4.0}, "repeat 3 has no baseline"
    assert summary["tokens_per_second"] == {"median": 40.0, "low": 20.0, "high": 90.0}


def test_without_a_baseline_there_is_no_speed_up() -> None:
    (summary,) = summarise([_measured("strict")])
    assert summary["speed_up"] is None
