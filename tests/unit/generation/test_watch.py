"""Whoever waits for an engine that was killed is told."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_dare.generation import watch
from vllm_dare.generation.watch import EngineStoppedError, watch_engine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.01)


def test_waiting_for_rows_and_for_answers_ends() -> None:
    answer: Future[Any] = Future()
    core = SimpleNamespace(
        resources=SimpleNamespace(engine_dead=False), outputs_queue=Queue(), utility_results={1: answer}
    )
    watch_engine(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core)))
    core.outputs_queue.put("a row")
    core.resources.engine_dead = True
    assert core.outputs_queue.get(timeout=10) == "a row"
    assert isinstance(core.outputs_queue.get(timeout=10), EngineStoppedError)
    with pytest.raises(EngineStoppedError, match="finished rows are kept"):
        answer.result(timeout=10)


def test_an_engine_in_this_process_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def thread(**_: Callable[[], None]) -> None:
        raise AssertionError

    monkeypatch.setattr(watch, "Thread", thread)
    watch_engine(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=object())))
