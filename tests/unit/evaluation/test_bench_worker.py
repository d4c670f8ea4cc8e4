"""What a bench does inside the worker, with a runner and a suffix cache as vLLM has them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm_dare.evaluation.bench_worker import BenchWorker
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document

DEMO_MODEL = str(Path(__file__).parents[3] / "examples" / "demo" / "model")
TEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]


class Worker(BenchWorker):
    """What vLLM makes of its worker and the extension."""

    def __init__(self, drafter: Any = None) -> None:
        self.model_runner = SimpleNamespace(execute_model=lambda x: x + 1, sample_tokens=lambda: "sampled")
        if drafter is not None:
            self.model_runner.drafter = drafter


@pytest.fixture(autouse=True)
def no_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may run other tests of vLLM's functions as they are."""
    monkeypatch.setattr("vllm_dare.evaluation.bench_worker._mend_cpu", lambda: None)


@pytest.fixture(params=["global", "groups"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    documents = [
        Document(id=str(i), token_ids=np.array(text, np.int32), group=f"g{i}") for i, text in enumerate(TEXTS)
    ]
    build_pool(documents, DEMO_MODEL, tmp_path / "pool", global_segment=request.param == "global")
    return str(tmp_path / "pool")


def test_steps_and_look_ups_are_timed() -> None:
    worker = Worker(SimpleNamespace(propose=lambda tokens: tokens))
    worker.bench_prepare(None)
    runner = worker.model_runner
    assert (runner.execute_model(1), runner.sample_tokens(), runner.drafter.propose([1])) == (
        2,
        "sampled",
        [1],
    )
    times = worker.bench_times()
    assert times["look_ups"] == 1
    assert times["look_up_seconds"] > 0 and times["step_seconds"] > 0
    worker.bench_reset()
    assert worker.bench_times() == {"look_up_seconds": 0, "look_ups": 0, "step_seconds": 0}


def test_a_worker_without_a_drafter() -> None:
    worker = Worker()
    assert worker.bench_prepare("not looked at")["suffix_texts"] == 0
    worker.model_runner.execute_model(1)
    assert worker.bench_times()["look_ups"] == 0


def test_the_suffix_cache_knows_the_pool_and_forgets_the_rest(pool: str) -> None:
    suffix_decoding = pytest.importorskip("arctic_inference.suffix_decoding")
    cache = suffix_decoding.SuffixDecodingCache(max_tree_depth=24, max_cached_requests=10)
    worker = Worker(SimpleNamespace(propose=lambda: [], suffix_cache=cache))
    assert worker.bench_prepare(pool)["suffix_texts"] == 2

    def drafts(text: list[int]) -> list[int]:
        cache.start_request("probe", np.array(text, np.int32))
        found = cache.speculate("probe", np.array(text, np.int32), max_spec_tokens=2).token_ids
        cache.stop_request("probe")
        cache.evict_cached_response("probe")
        return list(found)

    assert drafts([5, 6, 7]) == [8, 9]
    cache.start_request("served", np.array([1], np.int32))
    cache.add_active_response("served", [20, 21, 22, 23])
    assert drafts([20, 21, 22]) == [23]
    worker.bench_reset()
    assert drafts([20, 21, 22]) == []
    assert drafts([5, 6, 7]) == [8, 9]
    assert len(cache.active_requests) == 0
