"""A row that the engine refuses is an error row, whatever the engine raises."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_dare.generation.prompts import PromptRow
from vllm_dare.generation.runner import Runner
from vllm_dare.generation.settings import SamplingSettings
from vllm_dare.generation.watch import EngineStoppedError
from vllm_dare.pool.assignments import Assignments, write_assignments
from vllm_dare.routing.router import Router

MESSAGES = [{"role": "user"}]


class FakeLLM:
    """An engine that raises at every row, or finishes it in one step."""

    def __init__(self, error: Exception | None = None) -> None:
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=1)), step=self._step
        )
        self._error = error
        self.asked: list[Any] = []

    def enqueue(self, prompts: list[Any], params: Any, **_: Any) -> list[str]:
        self.asked.append(params.extra_args)
        if self._error is not None:
            raise self._error
        return ["0-abc"]

    enqueue_chat: Callable[..., list[str]] = enqueue

    def _step(self) -> list[Any]:
        completion = SimpleNamespace(
            text="text", token_ids=[1], finish_reason="stop", spec_decode_metrics=None
        )
        return [SimpleNamespace(finished=True, request_id="0", prompt_token_ids=[1], outputs=[completion])]


def _run(row: PromptRow, error: Exception | None = None, router: Router | None = None) -> dict[str, Any]:
    runner = Runner(FakeLLM(error), SamplingSettings(), lambda: False, router=router)
    (found,) = runner.run(iter([row]))
    return found


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("content"), "The messages are not valid: KeyError: 'content'"),
        (AttributeError("no such thing"), "The messages are not valid: AttributeError: no such thing"),
        (ValueError("The prompt is too long."), "The prompt is too long."),
        (ConnectionError("No such host."), "No such host."),
        (RuntimeError(), "The messages are not valid: RuntimeError"),
    ],
)
def test_a_chat_that_cannot_be_used_is_an_error_row(error: Exception, sentence: str) -> None:
    row = _run(PromptRow(1, MESSAGES, {}), error)
    assert (row["finish_reason"], row["error"]) == ("error", sentence)


def test_a_prompt_that_cannot_be_used_is_an_error_row() -> None:
    assert _run(PromptRow(1, "a", {}), RuntimeError("odd"))["error"] == "RuntimeError: odd"


def test_a_dead_engine_ends_the_run() -> None:
    with pytest.raises(EngineStoppedError):
        _run(PromptRow(1, "a", {}), EngineDeadError())


def test_a_group_is_written_as_a_text() -> None:
    assert _run(PromptRow(1, "a", {"dare_group": "users/1"}))["group"] == "users/1"
    assert _run(PromptRow(1, "a", {"dare_group": 5}))["group"] == "5"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, {}),
        ({"dare_user": 19}, {"user": "19"}),
        ({"dare_item": "5"}, {"item": "5"}),
        # of both, what an engine learns the text by
        ({"dare_user": "19", "dare_item": "5"}, {"user": "19"}),
        ({"dare_history": ["1"]}, {}),
    ],
)
def test_a_row_says_whom_it_is_about(metadata: dict[str, Any], expected: dict[str, str]) -> None:
    row = _run(PromptRow(1, "a", metadata))
    assert {name: row[name] for name in ("user", "item", "group") if name in row} == expected


@pytest.fixture
def router(tmp_path: Path) -> Router:
    table = write_assignments(tmp_path, [("user", "19", "users/1"), ("item", "5", "items/1")])
    return Router(Assignments.open(table))


@pytest.mark.parametrize(
    ("metadata", "group"),
    [
        ({"dare_user": 19}, "users/1"),
        ({"dare_user": "new", "dare_item": "5"}, "items/1"),
        ({"dare_user": "19", "dare_group": "mine"}, "mine"),
        ({"dare_user": "new"}, None),
        ({}, None),
    ],
)
def test_a_row_that_names_no_group_has_that_of_the_router(
    router: Router, metadata: dict[str, Any], group: str | None
) -> None:
    assert _run(PromptRow(1, "a", metadata), router=router).get("group") == group


def test_the_engine_is_asked_what_the_row_asks(router: Router) -> None:
    llm, row = FakeLLM(), PromptRow(1, "a", {"dare_user": 19})
    list(Runner(llm, SamplingSettings(), lambda: False, router=router).run(iter([row])))
    assert llm.asked == [{"dare_user": 19}]


def test_an_error_row_is_no_document_of_anybody(router: Router) -> None:
    row = _run(PromptRow(1, "a", {"dare_user": 19}), ValueError("Too long."), router)
    assert row.keys().isdisjoint({"user", "group"})
