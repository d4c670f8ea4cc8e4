"""Several callers feed one engine; each gets its own rows, and hears of what goes wrong."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from types import ModuleType
from typing import Any

import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation import engine_thread
from vllm_dare.generation.engine_thread import EngineThread
from vllm_dare.generation.prompts import PromptRow
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.generation.watch import EngineStoppedError


class FakeLLM:
    def get_metrics(self) -> list[object]:
        return []


class FakeRunner:
    """Has the engine's interface: two rows at a time, one of them finishes with each step."""

    room = 2
    most_at_a_time = 0

    def __init__(self, llm: Any, sampling: Any, stopped: Any, router: Any = None) -> None:
        self._rows: list[PromptRow] = []

    @property
    def is_busy(self) -> bool:
        return bool(self._rows)

    def enqueue(self, row: PromptRow) -> Iterator[dict[str, Any]]:
        if row.prompt == "bad":
            yield _output(row, "error")
            return
        if row.prompt == "dead":
            raise EngineStoppedError
        if row.prompt == "hopeless":
            raise DareError("All rows failed.")
        self._rows.append(row)
        type(self).most_at_a_time = max(self.most_at_a_time, len(self._rows))

    def step(self) -> Iterator[dict[str, Any]]:
        yield _output(self._rows.pop(0), "stop")


def _output(row: PromptRow, reason: str) -> dict[str, Any]:
    return {"id": row.id, "finish_reason": reason, "completion_tokens": 1}


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Engines that were stopped."""
    found: list[Any] = []
    module = ModuleType("vllm_dare.generation.runner")
    module.Runner = FakeRunner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(engine_thread, "start_engine", lambda settings: FakeLLM())
    monkeypatch.setattr(engine_thread, "stop_engine", found.append)
    return found


def _engine(died: Event | None = None) -> EngineThread:
    return EngineThread(EngineSettings("m"), SamplingSettings(), (died or Event()).set)


def _rows(start: int, *prompts: str) -> list[PromptRow]:
    return [PromptRow(start + number, prompt, {}) for number, prompt in enumerate(prompts)]


def test_each_caller_gets_its_rows(stopped: list[Any]) -> None:
    engine = _engine()
    with ThreadPoolExecutor(4) as callers:
        asked = [_rows(10 * number, "a", "bad", "b", "c") for number in range(8)]
        for rows, found in zip(asked, callers.map(engine.generate, asked), strict=True):
            assert {row["id"] for row in found} == {row.id for row in rows}
            assert sum(row["finish_reason"] == "error" for row in found) == 1
    figures = engine.figures()
    assert (figures.rows, figures.failed, figures.completion_tokens) == (32, 8, 32)
    engine.close()
    assert len(stopped) == 1


def test_rows_of_the_next_caller_fill_the_engine_while_those_of_the_last_run_out(stopped: list[Any]) -> None:
    engine = _engine()
    FakeRunner.most_at_a_time = 0
    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(engine.generate, [_rows(number, "a") for number in range(200)]))
    assert FakeRunner.most_at_a_time > 1
    engine.close()


def test_a_start_that_fails_is_told_to_all(stopped: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: EngineSettings) -> None:
        raise DareError("It did not start.")

    monkeypatch.setattr(engine_thread, "start_engine", fail)
    engine = _engine()
    for _ in range(2):
        with pytest.raises(DareError, match="It did not start"):
            engine.generate(_rows(0, "a"))
    engine.close()


def test_what_ends_the_run_is_told_to_all(stopped: list[Any]) -> None:
    engine = _engine()
    for prompt in ("hopeless", "a"):
        with pytest.raises(DareError, match="All rows failed"):
            engine.generate(_rows(0, prompt))
    engine.close()
    assert len(stopped) == 1


def test_the_end_of_the_engine_is_for_its_owner(stopped: list[Any]) -> None:
    died = Event()
    engine = _engine(died)
    Thread(target=engine.generate, args=[_rows(0, "dead")], daemon=True).start()
    assert died.wait(10)
