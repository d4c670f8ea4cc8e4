"""A run tells what it has learned, and why it has not."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vllm_dare.generation.job import Outcome
from vllm_dare.generation.learned import Learned, end_learning, learned_since, learned_so_far
from vllm_dare.generation.settings import EngineSettings
from vllm_dare.generation.summary import outcome_table
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import LiveStore, prepare_live
from vllm_dare.pool.tokenizer import TokenizerInfo

INFO = TokenizerInfo(name="numbers", fingerprint="0123456789abcdef", vocab_size=64)
FULL = "pool/live could not be written (No space left on device)"


class FakeLLM:
    """An engine whose workers answer, or that has died."""

    def __init__(self, *answers: Mapping[str, Any] | None) -> None:
        self._answers = answers

    def collective_rpc(self, _method: str) -> list[Mapping[str, Any] | None]:
        if not self._answers:
            raise RuntimeError("it is dead")
        return list(self._answers)


@pytest.fixture
def engine(tmp_path: Path) -> EngineSettings:
    return EngineSettings("m", pool=tmp_path, learn=True)


def test_what_has_come_since_is_told_with_how_it_went(engine: EngineSettings) -> None:
    assert engine.pool is not None
    store = LiveStore(prepare_live(engine.pool, INFO), INFO, has_global=True, max_tokens=1000)
    store.freeze([LiveDocument(np.arange(10, dtype=np.int32), "g", "strict")])
    before = learned_so_far(engine)
    store.freeze([LiveDocument(np.arange(20, dtype=np.int32), "g", "strict")])
    end = end_learning(FakeLLM(None, {"known": 3, "failure": FULL}), engine)
    assert learned_since(before, engine, end) == Learned(1, 20, known=3, failure=FULL)


def test_a_run_survives_an_engine_that_cannot_be_asked(engine: EngineSettings) -> None:
    assert "it is dead" in end_learning(FakeLLM(), engine)["failure"]


def test_an_engine_that_does_not_learn_is_not_asked() -> None:
    assert end_learning(FakeLLM(), EngineSettings("m")) == {}


@pytest.mark.parametrize(
    ("learned", "present", "absent"),
    [
        (Learned(5, 900), "5 documents, 900 tokens", "known before"),
        (Learned(0, 0, known=8), "0 documents, 0 tokens (and 8 known before)", "not learned"),
        (Learned(0, 0, relaxed=8), "8 relaxed texts", "not learned"),
        (Learned(0, 0, failure=FULL), f"{FULL}; mend that", "known before"),
    ],
)
def test_the_summary_says_why_nothing_was_learned(learned: Learned, present: str, absent: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(outcome_table(Outcome("complete", 8, 0, 0, learned=learned)))
    text = console.file.getvalue()
    assert present in text and absent not in text
