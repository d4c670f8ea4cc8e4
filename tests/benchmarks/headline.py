"""The headline table: DARE against vLLM without speculation and with suffix decoding, in one run.

Needs a folder with `models/recllm-6m` (a 6 M parameter model trained on LLM-written user knowledge) and
`data/ml1m` (its prompts and its own earlier texts). Every arm is an engine of its own in a process of its
own; engine start is not counted. Times on a shared machine are noise, so read ratios.

    .venv/bin/python -m tests.benchmarks.headline --shared ../shared
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

DRAFT_TOKENS = 16
MAX_TOKENS = 500
RELAXED = {"mode": "relaxed", "top_k": 2, "min_prob": 0.1, "guard_stop_tokens": True}


@dataclass(frozen=True)
class Arm:
    """One engine run: decoding method, sequences at a time, temperature, users and the pool's source."""

    method: str
    sequences: int
    temperature: float
    users: int
    pool: str | None = None

    @property
    def name(self) -> str:
        kind = "greedy" if self.temperature == 0 else f"t {self.temperature}"
        return f"{kind}, {self.sequences} at a time, {self.method}"


def arms(users: int) -> list[Arm]:
    """The arms, those that are compared next to each other."""
    plan = []
    for sequences in (1, 16):
        for method, pool in (("none", None), ("strict", "warmup_users"), ("suffix", None)):
            plan.append(Arm(method, sequences, 0.0, users, pool))
    for method, pool in (("none", None), ("strict", "warmup_users_t07"), ("relaxed", "warmup_users_t07")):
        plan.append(Arm(method, 1, 0.7, users, pool))
    return plan


def read_prompts(shared: Path, users: int) -> list[str]:
    """Prompts of users that the model has not seen."""
    data = shared / "data" / "ml1m"
    test_users = set(json.loads((data / "splits.json").read_text())["test_users"])
    with gzip.open(data / "user_knowledge.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    return [row["prompt"] for row in rows if row["id"] in test_users][:users]


def build_pool(shared: Path, name: str, output: Path) -> None:
    """Build the pool of the model's own earlier texts."""
    from vllm_dare.pool.build import build_pool as build
    from vllm_dare.pool.documents import read_documents

    documents = read_documents([shared / "data" / "ml1m" / f"{name}.jsonl.gz"])
    build(documents, str(shared / "models" / "recllm-6m"), output, provenance="strict")


def engine_options(arm: Arm, pools: Path) -> dict[str, Any]:
    """What the arm adds to vLLM's options."""
    if arm.method == "none":
        return {}
    if arm.method == "suffix":
        speculation = {"method": "suffix", "num_speculative_tokens": DRAFT_TOKENS}
        return {"speculative_config": speculation}
    verification = RELAXED if arm.method == "relaxed" else {"mode": "strict"}
    return {
        "speculative_config": {
            "method": "custom_class",
            "model": "vllm_dare.DareProposer",
            "num_speculative_tokens": DRAFT_TOKENS,
        },
        "additional_config": {"dare": {"pool": str(pools / str(arm.pool)), "verification": verification}},
    }


def run_arm(arm: Arm, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one arm in this process and measure it."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(arguments.shared / "models" / "recllm-6m"),
        max_model_len=1024,
        max_num_seqs=arm.sequences,
        enforce_eager=not arguments.compile,
        dtype=arguments.dtype,
        disable_log_stats=False,
        **engine_options(arm, arguments.pools),
    )
    params = SamplingParams(temperature=arm.temperature, max_tokens=MAX_TOKENS)
    prompts = read_prompts(arguments.shared, arm.users + 4)
    llm.generate(prompts[arm.users :], params, use_tqdm=False)
    accepted = -_accepted(llm)
    start = time.perf_counter()
    outputs = llm.generate(prompts[: arm.users], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    accepted += _accepted(llm)
    texts = [list(output.outputs[0].token_ids) for output in outputs]
    tokens = sum(map(len, texts))
    return {
        **asdict(arm),
        "seconds": seconds,
        "tokens_per_step": tokens / (tokens - accepted),
        "mean_tokens": tokens / len(texts),
        "texts": texts,
    }


def _accepted(llm: Any) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens")


def measure_look_ups(shared: Path, pools: Path, users: int) -> dict[str, float]:
    """Look-up time as the engine meets it: 16 requests a call, each followed through its real text."""
    from vllm_dare.drafting.drafter import Drafter
    from vllm_dare.pool.pool import RetrievalPool

    start = time.perf_counter()
    pool = RetrievalPool.open(pools / "warmup_users")
    opened = time.perf_counter() - start
    with gzip.open(shared / "data" / "ml1m" / "warmup_users_t07.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["token_ids"] for line in file][: max(users, 16)]
    drafter = Drafter(pool, DRAFT_TOKENS, 8192)
    drafter.compile()
    token_ids = np.zeros((16, 1024), dtype=np.int32)
    rows, limits = np.arange(16, dtype=np.int64), np.full(16, DRAFT_TOKENS, dtype=np.int64)
    sources = [drafter.sources(None)] * 16
    times = []
    for first in range(0, len(texts) - 15, 16):
        batch = texts[first : first + 16]
        for row, text in enumerate(batch):
            token_ids[row, : len(text)] = text
        for size in range(4, min(map(len, batch)), 5):
            start = time.perf_counter()
            drafter.draft(token_ids, rows, np.full(16, size, dtype=np.int64), limits, sources)
            times.append((time.perf_counter() - start) / 16 * 1e6)
    return {
        "open_ms": opened * 1e3,
        "median_us": float(np.median(times)),
        "p99_us": float(np.percentile(times, 99)),
    }


def in_child(arguments: argparse.Namespace, arm: Arm, pools: Path) -> dict[str, Any]:
    """Run one arm in a fresh process, with the libraries preloaded that vLLM advises for CPU."""
    from vllm_dare.engine.preload import preload_libraries

    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    environment["LD_PRELOAD"] = ":".join(map(str, preload_libraries()))
    if arguments.in_process:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [sys.executable, "-m", "tests.benchmarks.headline", "--shared", str(arguments.shared)]
        command += ["--arm", json.dumps(asdict(arm)), "--pools", str(pools), "--json", result.name]
        command += ["--dtype", arguments.dtype] + ["--compile"] * arguments.compile
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            sys.exit(f"{arm.name} failed:\n{process.stderr[-3000:]}")
        return json.loads(Path(result.name).read_text())


def agreement(left: list[list[int]], right: list[list[int]]) -> float:
    """Share of texts that are identical."""
    return sum(one == other for one, other in zip(left, right, strict=True)) / len(left)


def print_table(results: list[dict[str, Any]], look_ups: dict[str, float]) -> None:
    """One line an arm; speed-up and agreement against the arm without speculation."""
    table = Table(title="recllm-6m, users of ml1m, CPU", caption="speed-up: against none, same run")
    for column in ("run", "tokens per step", "speed-up", "mean length", "same text as none"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for result in results:
        base = next(
            r
            for r in results
            if r["method"] == "none"
            and (r["sequences"], r["temperature"]) == (result["sequences"], result["temperature"])
        )
        fields = {key: result[key] for key in Arm.__dataclass_fields__}
        table.add_row(
            Arm(**fields).name,
            f"{result['tokens_per_step']:.2f}",
            f"{base['seconds'] / result['seconds']:.2f}x",
            f"{result['mean_tokens']:.1f}",
            "" if result["temperature"] else f"{agreement(base['texts'], result['texts']):.0%}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"look-up: {look_ups['median_us']:.1f} µs a request and step (median; p99 {look_ups['p99_us']:.1f}); "
        f"pool opened in {look_ups['open_ms']:.2f} ms"
    )


def main() -> None:
    """Run all arms and print the table; with --arm, run that one arm for the parent process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--users", type=int, default=60, help="how many users an arm writes for")
    parser.add_argument("--compile", action="store_true", help="torch.compile (vLLM's default) in all arms")
    parser.add_argument("--in-process", action="store_true", help="engines without processes of their own")
    parser.add_argument("--dtype", default="auto", help="the model's arithmetic: auto (bfloat16), float32")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--pools", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.shared / "models" / "recllm-6m").is_dir():
        sys.exit(
            f"{arguments.shared} has no models/recllm-6m: this benchmark needs that model and data/ml1m."
        )
    if arguments.arm:
        arm = Arm(**json.loads(arguments.arm))
        arguments.json.write_text(json.dumps(run_arm(arm, arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        pools = Path(folder)
        for name in ("warmup_users", "warmup_users_t07"):
            build_pool(arguments.shared, name, pools / name)
        results = []
        for arm in arms(arguments.users):
            results.append(in_child(arguments, arm, pools))
            print(f"{arm.name}: {results[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
        look_ups = measure_look_ups(arguments.shared, pools, arguments.users)
    print_table(results, look_ups)
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": results, "look_ups": look_ups}))


if __name__ == "__main__":
    main()
