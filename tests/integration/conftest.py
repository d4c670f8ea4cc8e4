"""Engines, pools and prompts that integration tests share. Engines are slow to start: one per module."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document, read_documents

DEMO = Path(__file__).parents[2] / "examples" / "demo"
SPECULATION = {"method": "custom_class", "model": "vllm_dare.DareProposer", "num_speculative_tokens": 16}


def read_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[:limit]]


@pytest.fixture(scope="session")
def demo_model() -> str:
    return str(DEMO / "model")


@pytest.fixture(scope="session")
def demo_prompts() -> list[dict[str, Any]]:
    return read_rows(DEMO / "prompts.jsonl")


@pytest.fixture(scope="session")
def demo_pool(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool of the demo's documents, with groups and assignments."""
    output = tmp_path_factory.mktemp("pools") / "demo"
    build_pool(read_documents([DEMO / "documents.jsonl"]), demo_model, output)
    return output


@pytest.fixture(scope="module")
def start_engine() -> Iterator[Callable[..., Any]]:
    """Starts vLLM engines as a user would, and ends them with the module."""
    engines: list[Any] = []

    def start(model: str, dare: dict[str, Any] | None = None, **options: Any) -> Any:
        from vllm import LLM

        if dare is not None:
            options |= {"speculative_config": SPECULATION, "additional_config": {"dare": dare}}
        defaults = {
            "enforce_eager": True,
            "max_model_len": 1024,
            "dtype": "float32",
            "disable_log_stats": False,
        }
        engines.append(LLM(model, **(defaults | options)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def pool_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[list[int]]], Path]:
    """Builds a pool of token lists for a model, half of them in group "g"."""

    def build(model: str, texts: list[list[int]]) -> Path:
        import numpy as np

        documents = [
            Document(id=str(i), token_ids=np.array(text, np.int32), group="g" if i % 2 else None)
            for i, text in enumerate(texts)
        ]
        output = tmp_path_factory.mktemp("pools") / "tokens"
        build_pool(documents, model, output)
        return output

    return build


def spec_counters(engine: Any) -> dict[str, float]:
    """vLLM's own counters of drafts and accepted draft tokens."""
    return {
        metric.name.removeprefix("vllm:spec_decode_"): metric.value
        for metric in engine.get_metrics()
        if metric.name.startswith("vllm:spec_decode_") and hasattr(metric, "value")
    }
