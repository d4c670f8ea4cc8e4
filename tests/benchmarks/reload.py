"""Steps of an engine while its pool is replaced by one of a hundred million tokens:

    python -m tests.benchmarks.reload --tokens 100000000

The engine runs 16 requests in this process. The new pool is built beforehand and put in the place of the one
that is served. Prints the lengths of the steps before, and from the moment of the replacement until two
seconds after the new pool has been taken up. Steps that read the prompts of new requests stand apart: they
are long whatever the pool does.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import numpy as np

from tests.integration.conftest import DEMO, SPECULATION, read_rows

PASSAGE_TOKENS = 16
DOCUMENT_TOKENS = 320
REQUESTS = 16
BEFORE_SECONDS = 20.0
AFTER_SECONDS = 2.0
PERCENTS = (50, 90, 99, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build is not None:  # in a process of its own, whose memory goes with it
        _build(arguments.build, arguments.tokens)
        return
    with tempfile.TemporaryDirectory() as folder:
        pool, new = Path(folder) / "pool", Path(folder) / "new"
        for directory, tokens in ((pool, 200_000), (new, arguments.tokens)):
            command = [sys.executable, "-m", "tests.benchmarks.reload", "--build", str(directory)]
            subprocess.run([*command, "--tokens", str(tokens)], check=True)
        _show(*_steps(pool, new))


def _build(directory: Path, num_tokens: int) -> None:
    """A pool of passages of the demo's documents, in any order."""
    from vllm_dare.pool.segment import PoolDocument
    from vllm_dare.pool.tokenizer import load_tokenizer, tokenizer_info
    from vllm_dare.pool.writer import PoolContent, write_pool

    tokenizer = load_tokenizer(str(DEMO / "model"))
    texts = [row["text"] for row in read_rows(DEMO / "documents.jsonl")]
    corpus = np.concatenate([np.array(one.ids, np.int32) for one in tokenizer.encode_batch(texts)])
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(corpus) - PASSAGE_TOKENS, num_tokens // PASSAGE_TOKENS)
    tokens = corpus[(starts[:, None] + np.arange(PASSAGE_TOKENS)).ravel()]
    documents = [PoolDocument(one) for one in np.array_split(tokens, max(2, num_tokens // DOCUMENT_TOKENS))]
    content = PoolContent(
        tokenizer=tokenizer_info(tokenizer, str(DEMO / "model")),
        groups={},
        global_documents=documents,
        assignments=None,
        provenance="external",
        model=None,
    )
    write_pool(content, directory)


class Step(NamedTuple):
    """One step of the engine.

    Attributes:
        seconds: how long it took.
        reads_prompts: whether requests began with it.
    """

    seconds: float
    reads_prompts: bool


def _steps(pool: Path, new: Path) -> tuple[list[Step], list[Step], float]:
    """The steps before and around the replacement, and how long it took to be served, in seconds."""
    from vllm import EngineArgs, LLMEngine

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            str(DEMO / "model"),
            enforce_eager=True,
            dtype="float32",
            max_num_seqs=REQUESTS,
            max_model_len=1024,
            speculative_config=SPECULATION,
            additional_config={"dare": {"pool": str(pool)}},
        )
    )
    drafter = engine.model_executor.driver_worker.worker.model_runner.drafter
    rows = read_rows(DEMO / "prompts.jsonl")
    number = 0

    def step() -> Step:
        nonlocal number
        first = number
        while engine.get_num_unfinished_requests() < REQUESTS:
            engine.add_request(
                str(number), rows[number % len(rows)]["prompt"], _params(rows[number % len(rows)])
            )
            number += 1
        began = time.perf_counter()
        engine.step()
        return Step(time.perf_counter() - began, number > first)

    _run(step, lambda: False, BEFORE_SECONDS / 2)
    before = _run(step, lambda: False, BEFORE_SECONDS)
    for path in (new / "segments").iterdir():
        shutil.move(path, pool / "segments" / path.name)
    os.replace(new / "manifest.json", pool / "manifest.json")
    small, replaced = drafter.drafter.pool, time.perf_counter()
    during = _run(step, lambda: drafter.drafter.pool is not small, 600.0)
    seconds = time.perf_counter() - replaced
    return before, [*during, *_run(step, lambda: False, AFTER_SECONDS)], seconds


def _params(row: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=200, extra_args={"dare_group": row["group"]})


def _run(step: Callable[[], Step], is_over: Callable[[], bool], seconds: float) -> list[Step]:
    steps, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end and not is_over():
        steps.append(step())
    return steps


def _show(before: list[Step], around: list[Step], seconds: float) -> None:
    print(f"served after {seconds:.1f} s")
    for reads_prompts, kind in ((False, "steps that only write"), (True, "steps that read prompts")):
        lengths = [
            [one.seconds for one in steps if one.reads_prompts == reads_prompts] for steps in (before, around)
        ]
        for name, times in zip(("before", "around the reload"), lengths, strict=True):
            figures = ", ".join(
                f"{percent} %: {np.percentile(times, percent) * 1e3:.1f}" for percent in PERCENTS
            )
            print(f"{kind}, {name}: {len(times)}, ms at {figures}")
        print(f"  longest around the reload / median before: {max(lengths[1]) / np.median(lengths[0]):.2f}")


if __name__ == "__main__":
    main()
