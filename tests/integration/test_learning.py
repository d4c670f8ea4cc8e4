"""Learning on a real engine: from an empty pool, within a run and for the next one, and no text changes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.pool import RetrievalPool

from .conftest import SPECULATION
from .one_process import run_engines

pytestmark = pytest.mark.filterwarnings("default")

GROUP = "users/mystery-fans"
ROWS = 12


@pytest.fixture(scope="module")
def prompts(demo_model: str, demo_prompts: list[dict[str, Any]]) -> list[list[int]]:
    """One group's prompts as token ids."""
    from vllm_dare.pool.tokenizer import load_tokenizer

    encode = load_tokenizer(demo_model).encode
    rows = [row for row in demo_prompts if row["group"] == GROUP][:ROWS]
    return [encode(row["prompt"]).ids for row in rows]


@pytest.fixture(scope="module")
def results(
    demo_model: str, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """A cold engine and a later one on the same, at first missing, pool; then one without learning."""
    pool = tmp_path_factory.mktemp("learning") / "pool"
    common = {
        "model": demo_model,
        "prompts": prompts,
        "params": {"temperature": 0.0, "max_tokens": 200},
        "extra_args": [{"dare_group": GROUP}] * len(prompts),
        "max_num_seqs": 2,
    }
    learning = {"pool": str(pool), "live": {}, "draft_budget": "fixed"}
    jobs = [common | {"dare": dare} for dare in (learning, learning, {"draft_budget": "fixed"})]
    return pool, run_engines(jobs, tmp_path_factory.mktemp("jobs"))


def accepted_per_draft(result: dict[str, Any]) -> float:
    counters = result["counters"]
    return float(counters["num_accepted_tokens"] / counters["num_drafts"])


def test_texts_are_the_same_with_and_without_learning(results: tuple[Path, list[dict[str, Any]]]) -> None:
    cold, warm, without = results[1]
    assert cold["outputs"] == warm["outputs"] == without["outputs"]


def test_drafts_get_better_while_it_runs_and_better_yet_the_next_time(
    results: tuple[Path, list[dict[str, Any]]],
) -> None:
    cold, warm, without = map(accepted_per_draft, results[1])
    assert cold > 1.2 * without
    assert warm > 2 * cold


def test_what_is_on_disk_is_what_was_written(
    results: tuple[Path, list[dict[str, Any]]], prompts: list[list[int]]
) -> None:
    pool, (cold, warm, _) = results
    end = 2  # the demo tokenizer's end-of-text token, which no document holds
    assert cold["outputs"] == warm["outputs"]  # which are kept once
    written = [[token for token in text if token != end] for text in cold["outputs"]]
    with RetrievalPool.open(pool / "live") as live:
        live.verify()
        assert list(live.groups) == [GROUP]
        for segments in (live.group_segments(GROUP), live.global_segments()):
            documents = [document.tolist() for segment in segments for document in segment.documents()]
            assert sorted(documents) == sorted(written)


@pytest.fixture
def configure(demo_model: str) -> Callable[..., Any]:
    """What the front end does before it starts workers."""

    def configure(**dare: Any) -> Any:
        from vllm import EngineArgs

        return EngineArgs(
            demo_model, speculative_config=SPECULATION, additional_config={"dare": dare}
        ).create_engine_config()

    return configure


def test_the_front_end_makes_what_is_missing(configure: Any, tmp_path: Path) -> None:
    configure(pool=str(tmp_path / "a" / "pool"), live={})
    with (
        RetrievalPool.open(tmp_path / "a" / "pool") as pool,
        RetrievalPool.open(pool.directory / "live") as live,
    ):
        assert pool.tokenizer == live.tokenizer
        assert not pool.groups
    configure(pool=str(tmp_path / "a" / "pool"), live={"max_tokens": 10**5})


def test_without_learning_a_missing_pool_is_still_an_error(configure: Any, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="not a pool directory"):
        configure(pool=str(tmp_path / "pool"))


def test_a_place_that_cannot_be_written_to_is_refused(configure: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PoolError, match="Cannot write the pool"):
        configure(pool=str(tmp_path / "file" / "pool"), live={})


def test_generate_learns(demo_model: str, demo_prompts: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in demo_prompts[:8])
    (tmp_path / "prompts.jsonl").write_text(rows)
    command = [sys.executable, "-m", "vllm_dare.cli.app", "generate", "--model", demo_model, "--learn"]
    command += ["--pool", "pool", "--prompts", "prompts.jsonl", "--output", "out.jsonl", "--json", "out.json"]
    command += ["--max-tokens", "64", "--max-num-seqs", "4", "--max-model-len", "1024", "--dtype", "float32"]
    command += ["--engine-args", '{"enforce_eager": true, "kv_cache_memory_bytes": 200000000}']
    subprocess.run(command, cwd=tmp_path, check=True)
    learned = json.loads((tmp_path / "out.json").read_text())["learned"]
    assert (learned["documents"], learned["known"], learned["failure"]) == (8, 0, None)
    with RetrievalPool.open(tmp_path / "pool" / "live") as live:
        live.verify()
        assert sum(info.num_tokens for info in live.manifest.segments.values()) == 2 * learned["tokens"]
