"""A request's figures on vLLM's span: from the scheduler, through vLLM's own code, to the attributes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.core.sched import scheduler as upstream
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

from vllm_dare.engine import request_meters, spans
from vllm_dare.engine.scheduler import DareScheduler

METERS = {"exact": 5, "relaxed": 2, "given_up": 1.5, "budget_stops": 0, "given_up_per_token": 0.75}


def config(endpoint: str | None = None, metrics: str = "none", scheduler_cls: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        observability_config=SimpleNamespace(
            otlp_traces_endpoint=endpoint, per_request_spec_decode_metrics=metrics
        ),
        scheduler_config=SimpleNamespace(scheduler_cls=scheduler_cls),
    )


def counted() -> RequestSpecDecodeMetrics:
    """Three steps: 4 of 4, 1 of 4 and none of 2 drafts accepted."""
    metrics = RequestSpecDecodeMetrics.new(4)
    for drafts, accepted in ((4, 4), (4, 1), (2, 0)):
        metrics.observe(drafts, accepted)
    return metrics


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DareScheduler]:
    """Makes schedulers whose base only hands on the outputs that a test gives it."""

    def init(self: Any, vllm_config: Any) -> None:
        self.vllm_config, self.requests = vllm_config, {}
        self.spec_decode_metrics_level = vllm_config.observability_config.per_request_spec_decode_metrics

    monkeypatch.setattr(upstream.Scheduler, "__init__", init)
    monkeypatch.setattr(
        upstream.Scheduler,
        "update_from_output",
        lambda _self, outputs, _: {0: EngineCoreOutputs(outputs=outputs)},
    )
    return DareScheduler


def output(request_id: str, over: bool, drafts: RequestSpecDecodeMetrics | None = None) -> EngineCoreOutput:
    return EngineCoreOutput(
        request_id, [1], finish_reason=FinishReason.STOP if over else None, spec_decode_metrics=drafts
    )


def worker(meters: dict[str, Any] | None = None, groups: dict[str, Any] | None = None) -> SimpleNamespace:
    found = {request_meters.METERS: meters, spans.GROUPS: groups}
    return SimpleNamespace(**{name: value for name, value in found.items() if value is not None})


def test_the_attributes_are_what_was_counted() -> None:
    assert spans.attributes(counted(), METERS, "users/a") == {
        "vllm_dare.draft_steps": 3,
        "vllm_dare.draft_tokens": 10,
        "vllm_dare.accepted_tokens": 5,
        "vllm_dare.relaxed_tokens": 2,
        "vllm_dare.given_up": 1.5,
        "vllm_dare.group": "users/a",
    }
    assert spans.attributes(None, None, None) == {}


@pytest.mark.parametrize(
    ("endpoint", "metrics", "cls", "ours"),
    [
        (None, "none", None, False),
        ("http://a:1", "none", None, True),
        (None, "summary", None, True),
        ("http://a:1", "none", "users.own", False),
    ],
)
def test_our_scheduler_runs_where_something_is_to_be_handed_on(
    endpoint: str | None, metrics: str, cls: str | None, ours: bool
) -> None:
    vllm_config = config(endpoint, metrics, cls)
    assert request_meters.prepare(vllm_config) is ours
    assert (vllm_config.scheduler_config.scheduler_cls == request_meters.SCHEDULER) is ours


def test_without_tracing_nothing_is_attached_or_counted(make: Callable[..., DareScheduler]) -> None:
    scheduler = make(config())
    assert scheduler.spec_decode_metrics_level == "none"
    last = output("a", over=True, drafts=counted())
    scheduler.update_from_output([output("b", over=False), last], worker())
    assert last.kv_transfer_params is None
    assert last.spec_decode_metrics is not None


def test_with_tracing_the_last_output_says_everything(make: Callable[..., DareScheduler]) -> None:
    scheduler = make(config("http://a:1"))
    assert scheduler.spec_decode_metrics_level == "summary"
    last = output("a", over=True, drafts=counted())
    scheduler.update_from_output([last], worker({"a": METERS}, {"a": "users/a", "gone": None}))
    assert last.kv_transfer_params == {
        request_meters.TRANSPORT_KEY: METERS,
        spans.TRANSPORT_KEY: spans.attributes(counted(), METERS, "users/a"),
    }
    assert last.spec_decode_metrics is None  # nobody asked for them in answers
    assert (scheduler._dare_meters, scheduler._dare_groups) == ({}, {})


def test_draft_metrics_that_answers_show_stay(make: Callable[..., DareScheduler]) -> None:
    scheduler = make(config("http://a:1", "detailed"))
    assert scheduler.spec_decode_metrics_level == "detailed"
    last = output("a", over=True, drafts=counted())
    scheduler.update_from_output([last], worker())
    assert last.spec_decode_metrics == counted()


def test_an_output_in_between_says_what_was_counted_so_far(make: Callable[..., DareScheduler]) -> None:
    """The front end may find a stop string in it, and then it is the last one of which a span is made."""
    scheduler = make(config("http://a:1"))
    scheduler.requests["a"] = SimpleNamespace(spec_decode_metrics=counted())
    between = output("a", over=False)
    scheduler.update_from_output([between], worker(groups={"a": "users/a"}))
    assert between.kv_transfer_params == {spans.TRANSPORT_KEY: spans.attributes(counted(), None, "users/a")}
    assert scheduler._dare_groups == {"a": "users/a"}


def test_the_figures_are_put_on_the_span_of_their_request_alone() -> None:
    made: list[tuple[str, dict[str, Any]]] = []

    def instrument_manual(span_name: str, start_time: int, attributes: Any = None) -> None:
        made.append((span_name, attributes))

    patched = spans.adding_figures(instrument_manual)

    def do_tracing(_self: Any, engine_core_output: Any, name: str) -> None:
        patched(name, start_time=0, attributes={"vllm": 1})
        if engine_core_output.request_id == "bad":
            raise ValueError

    trace = spans.handing_figures(do_tracing)
    with_figures = output("a", over=True)
    with_figures.kv_transfer_params = {spans.TRANSPORT_KEY: {"vllm_dare.draft_tokens": 7}, "other": 1}
    trace(None, with_figures, "first")
    bad = output("bad", over=True)
    bad.kv_transfer_params = with_figures.kv_transfer_params
    with pytest.raises(ValueError):
        trace(None, bad, "bad")
    trace(None, output("b", over=True), "second")
    patched("third", 0)
    assert made == [
        ("first", {"vllm": 1, "vllm_dare.draft_tokens": 7}),
        ("bad", {"vllm": 1, "vllm_dare.draft_tokens": 7}),
        ("second", {"vllm": 1}),
        ("third", None),
    ]


def test_the_front_end_takes_out_what_was_carried() -> None:
    seen: list[Any] = []

    def make_request_output(_self: Any, kv_transfer_params: Any = None) -> None:
        seen.append(kv_transfer_params)

    take_out = request_meters.taking_meters_out(make_request_output)
    state = SimpleNamespace(spec_decode_metrics=None)
    take_out(state, {spans.TRANSPORT_KEY: {}, request_meters.TRANSPORT_KEY: METERS})
    take_out(state, kv_transfer_params={spans.TRANSPORT_KEY: {}, "peer": 1})
    take_out(state, None)
    assert seen == [None, {"peer": 1}, None]
