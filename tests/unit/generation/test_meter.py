"""Figures are vLLM's counters over the stretch that the meter saw."""

from dataclasses import dataclass, field

import pytest

from vllm_dare.generation.meter import Counters, Figures, Meter


@dataclass
class Counter:
    name: str
    value: int


@dataclass
class Histogram:
    name: str
    count: int
    sum: float = 0.0


@dataclass
class FakeLLM:
    metrics: list[object] = field(default_factory=list)

    def get_metrics(self) -> list[object]:
        return self.metrics


def _metrics(tokens: int, first: int, later: int, drafts: int, accepted: int) -> list[object]:
    return [
        Counter("vllm:generation_tokens", tokens),
        Histogram("vllm:time_to_first_token_seconds", first),
        Histogram("vllm:inter_token_latency_seconds", later),
        Histogram("vllm:something_else", 99),
        Counter("vllm:spec_decode_num_draft_tokens", drafts),
        Counter("vllm:spec_decode_num_accepted_tokens", accepted),
    ]


def test_counters_are_summed_over_replicas() -> None:
    metrics = _metrics(10, 1, 4, 8, 5) + _metrics(20, 2, 8, 16, 10)
    assert Counters.read(metrics) == Counters(30, 15, 24, 15)


def test_a_meter_leaves_out_what_was_before() -> None:
    llm = FakeLLM(_metrics(100, 10, 90, 50, 5))
    meter = Meter(llm)
    llm.metrics = _metrics(160, 12, 108, 90, 45)
    meter.count({"finish_reason": "stop", "completion_tokens": 40})
    meter.count({"finish_reason": "error", "completion_tokens": 0})
    figures = meter.figures()
    assert (figures.rows, figures.failed, figures.completion_tokens) == (2, 1, 40)
    assert figures.tokens_per_step == 60 / 20
    assert figures.acceptance_rate == 1.0
    assert figures.mean_tokens == 40


def test_nothing_done_has_no_ratios() -> None:
    figures = Figures()
    assert figures.tokens_per_step is None
    assert figures.documents_per_second is None
    assert figures.acceptance_rate is None


def test_figures_as_json() -> None:
    figures = Figures(4, 1, 30, 2.0, Counters(30, 10, 40, 20)).as_dict()
    assert figures["documents_per_second"] == pytest.approx(1.5)
    assert figures["tokens_per_second"] == pytest.approx(15)
    assert figures["tokens_per_step"] == pytest.approx(3)
    assert figures["acceptance_rate"] == pytest.approx(0.5)


def test_what_relaxing_did_is_summed_over_rows() -> None:
    meter = Meter(FakeLLM())
    row = {"finish_reason": "stop", "completion_tokens": 10}
    meter.count(row)
    assert meter.figures().relaxed is None
    done = {"exact": 5, "relaxed": 2, "given_up": 0.5, "budget_stops": 1, "given_up_per_token": 0.25}
    meter.count({**row, "verification": done})
    meter.count({**row, "verification": done})
    assert meter.figures().as_dict()["verification"] == {
        "exact": 10, "relaxed": 4, "given_up": 1.0, "budget_stops": 2, "given_up_per_token": 0.25,
    }  # fmt: skip
