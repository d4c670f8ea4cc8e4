"""A server with vLLM's tracing on, and a receiver of its spans: each request's says what DARE did for it."""

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.proto")
pytest.importorskip("grpc")

from vllm_dare.engine.metrics_file import OTHER_GROUPS

from .conftest import SPECULATION
from .otlp_receiver import Receiver, attributes, running_receiver
from .server import metrics, running_server

MAX_DRAFT = SPECULATION["num_speculative_tokens"]
RELAXED = {"dare_preset": "fast"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with running_receiver() as found:
        yield found


@pytest.fixture(scope="module")
def address(
    demo_model: str, demo_pool: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    before = dict(os.environ)
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "100"  # milliseconds until finished spans are sent
    try:
        with running_server(
            demo_model, {"pool": str(demo_pool)}, log, "--otlp-traces-endpoint", receiver.address
        ) as found:
            yield found
    finally:
        os.environ.clear()
        os.environ.update(before)


def complete(address: str, prompt: str, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps({"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 64, **body}).encode(),
        {"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def test_every_requests_span_says_what_was_drafted_for_it(
    address: str, receiver: Receiver, demo_prompts: list[dict[str, Any]]
) -> None:
    row = demo_prompts[0]
    answers = [
        complete(
            address,
            row["prompt"],
            {"traceparent": f"00-{TRACE}-{PARENT}-01"},
            vllm_xargs={"dare_group": row["group"]},
        ),
        complete(address, demo_prompts[1]["prompt"], vllm_xargs={"dare_group": "made up"}),
        *(
            complete(address, other["prompt"], vllm_xargs=RELAXED, max_tokens=100)
            for other in demo_prompts[2:6]
        ),
    ]
    # ended by the front end, at a word of its own text, while the engine would go on
    word = answers[0]["choices"][0]["text"].split()[14]
    answers.append(complete(address, row["prompt"], stop=[word]))
    assert answers[-1]["choices"][0]["finish_reason"] == "stop"
    first, *_ = spans = receiver.named("llm_request", len(answers))
    found = [attributes(span) for span in spans]
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    for answer, span in zip(answers, found, strict=True):
        tokens = answer["usage"]["completion_tokens"]
        assert span["gen_ai.usage.completion_tokens"] >= tokens  # what is cut at a stop string counts
        assert 0 < span["vllm_dare.accepted_tokens"] <= span["vllm_dare.draft_tokens"]
        # a step writes one token more than it accepts, and the end cuts what the last one wrote
        assert span["vllm_dare.accepted_tokens"] + span["vllm_dare.draft_steps"] <= tokens + MAX_DRAFT
        assert not (answer.get("metrics") or {}).get("speculative_decoding")  # nobody asked for them
        assert not answer.get("kv_transfer_params")
    assert [span.get("vllm_dare.group") for span in found] == [row["group"], OTHER_GROUPS, *[None] * 5]
    relaxed = found[2:6]
    assert sum(span["vllm_dare.relaxed_tokens"] for span in relaxed) > 0
    assert all((span["vllm_dare.given_up"] > 0) == (span["vllm_dare.relaxed_tokens"] > 0) for span in relaxed)
    for span in (*found[:2], found[-1]):
        assert not {"vllm_dare.relaxed_tokens", "vllm_dare.given_up"} & span.keys()


def test_the_spans_add_up_to_vllms_own_counters(address: str, receiver: Receiver) -> None:
    """After the test above, whose requests are all over."""
    found = [attributes(span) for span in receiver.named("llm_request", 7)]
    counters = metrics(address)
    for name, counter in (
        ("draft_tokens", "vllm:spec_decode_num_draft_tokens_total"),
        ("accepted_tokens", "vllm:spec_decode_num_accepted_tokens_total"),
        ("draft_steps", "vllm:spec_decode_num_drafts_total"),
    ):
        assert sum(span[f"vllm_dare.{name}"] for span in found) == counters[counter]
    assert (
        sum(span.get("vllm_dare.relaxed_tokens", 0) for span in found)
        == counters["vllm_dare_relaxed_tokens_total"]
    )
