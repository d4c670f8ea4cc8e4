"""Half an hour of mixed load on a real server that learns, whose pool changes all the time:

    python -m tests.benchmarks.soak --minutes 30 --clients 64 --output soak.json

Clients complete, chat and stream, strictly and relaxed, by group, user or neither; some hang up in the middle
of an answer. Every half minute the operator rebuilds the pool, adds documents, drops a user, or flushes.
Prints what failed, and how much memory, open files and threads each process had after warm-up and at the end.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.integration.conftest import DEMO, read_rows
from tests.integration.server import metrics, running_server
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import read_documents

KEY = "soak"
SAMPLE_SECONDS = 5.0
OPERATION_SECONDS = 30.0
WARM_UP = 0.2  # of the time


@dataclass
class Outcome:
    """What happened: requests by kind, those that failed, and samples of every process."""

    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), arguments.minutes * 60, arguments.clients)
    arguments.output.write_text(json.dumps(report, indent=1))
    print(json.dumps({name: value for name, value in report.items() if name != "samples"}, indent=1))


def soak(folder: Path, seconds: float, clients: int) -> dict[str, Any]:
    """Run the load; see the module."""
    pool, outcome = folder / "pool", Outcome()
    build_pool(read_documents([DEMO / "documents.jsonl"]), str(DEMO / "model"), pool)
    # So little text is kept that eviction, too, has come about by the end of the warm-up.
    dare = {"pool": str(pool), "live": {"max_tokens": 100_000, "learn_relaxed": True}}
    plugins = {"VLLM_PLUGINS": "vllm_dare,vllm_dare_admin", "VLLM_API_KEY": KEY}
    options = ("--max-num-seqs", "32", "--max-model-len", "1024")
    with running_server(
        str(DEMO / "model"), dare, folder / "log.txt", *options, environment=plugins
    ) as address:
        asyncio.run(_load(address, pool, outcome, seconds, clients))
        shown = {
            name: value
            for name, value in metrics(address).items()
            if name.startswith("vllm_dare_") or "spec_decode" in name
        }
    lines = (folder / "log.txt").read_text().splitlines()
    return {
        "requests": dict(outcome.done),
        "failures": outcome.failures,
        "operations": dict(outcome.operations),
        "processes": _growth(outcome.samples, seconds),
        "metrics": {name: value for name, value in shown.items() if not name.endswith("_bucket")},
        "errors_logged": [line for line in lines if "ERROR" in line][:20],
        "log_lines_of_dare": sum("vllm_dare" in line or "DARE" in line for line in lines),
        "samples": outcome.samples,
    }


async def _load(address: str, pool: Path, outcome: Outcome, seconds: float, clients: int) -> None:
    end = time.monotonic() + seconds
    rows = read_rows(DEMO / "prompts.jsonl") + read_rows(DEMO / "item_prompts.jsonl")
    # The server closes connections that idle for five seconds; one that is used at that moment would fail.
    limits = httpx.Limits(max_connections=2 * clients, keepalive_expiry=2.0)
    async with openai.AsyncOpenAI(
        base_url=f"{address}/v1",
        api_key=KEY,
        max_retries=0,
        timeout=300,
        http_client=httpx.AsyncClient(limits=limits, timeout=300),
    ) as client:
        await asyncio.gather(
            *(_client(client, rows, random.Random(number), outcome, end) for number in range(clients)),
            _operator(address, pool, outcome, end),
            _sampler(address, outcome, end),
        )


async def _client(
    client: openai.AsyncOpenAI, rows: list[dict[str, Any]], rng: random.Random, outcome: Outcome, end: float
) -> None:
    kinds = ("completion", "relaxed", "chat", "stream", "cancelled", "sampled", "batch")
    weights = (3, 2, 2, 2, 1, 1, 1)
    while time.monotonic() < end:
        (kind,) = rng.choices(kinds, weights)
        try:
            await _ask(client, kind, rng.choice(rows), rng)
            outcome.done[kind] += 1
        except Exception as error:
            outcome.failures.append(f"{kind}: {type(error).__name__}: {error}"[:300])


async def _ask(client: openai.AsyncOpenAI, kind: str, row: dict[str, Any], rng: random.Random) -> None:
    keys = rng.choice([{"dare_group": row.get("group", "g")}, {"dare_user": f"u{rng.randrange(200)}"}, {}])
    if kind == "relaxed":
        keys = {**keys, "dare_verification": "relaxed", "dare_preset": "careful"}
    common: dict[str, Any] = {
        "model": "demo",
        "max_tokens": rng.randrange(20, 200),
        "temperature": 0.8 if kind == "sampled" else 0,
        "extra_body": {"vllm_xargs": keys},
    }
    if kind == "chat":
        messages = [{"role": "user", "content": row["prompt"]}]
        await client.chat.completions.create(messages=messages, **common)  # type: ignore[arg-type]
    elif kind in ("stream", "cancelled"):
        chunks = 0
        async with await client.completions.create(prompt=row["prompt"], stream=True, **common) as stream:
            async for _ in stream:
                chunks += 1
                if kind == "cancelled" and chunks == 3:
                    break
    else:
        prompt = [row["prompt"]] * 3 if kind == "batch" else row["prompt"]
        await client.completions.create(prompt=prompt, **common)


async def _operator(address: str, pool: Path, outcome: Outcome, end: float) -> None:
    """Change the pool in turn, while everybody asks."""
    documents = read_rows(DEMO / "documents.jsonl")
    headers = {"Authorization": f"Bearer {KEY}"}
    number = 0
    async with httpx.AsyncClient(base_url=f"{address}/v1/dare/", headers=headers, timeout=300) as admin:
        while time.monotonic() + OPERATION_SECONDS < end:
            await asyncio.sleep(OPERATION_SECONDS)
            number += 1
            kind = ("rebuild", "documents", "drop", "flush")[number % 4]
            try:
                if kind == "rebuild":
                    await _rebuild(pool, documents, number)
                    answer = await admin.post("reload", json={"wait_seconds": 60})
                elif kind == "documents":
                    rows = [
                        {**row, "id": f"new-{number}-{row['id']}"} for row in documents[number : number + 5]
                    ]
                    answer = await admin.post("documents", json={"documents": rows})
                elif kind == "drop":
                    answer = await admin.post("drop", json={"user": f"u{number}", "wait_seconds": 60})
                else:
                    answer = await admin.post("flush", json={"wait_seconds": 60})
                answer.raise_for_status()
                outcome.operations[kind] += 1
            except Exception as error:
                outcome.failures.append(f"operator's {kind}: {type(error).__name__}: {error}"[:300])


async def _rebuild(pool: Path, documents: list[dict[str, Any]], number: int) -> None:
    """Another pool in the place of the one before, built as an operator builds it."""
    path = pool.parent / "documents.jsonl"
    kept = documents[number % 50 :]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    command = ["-m", "vllm_dare", "pool", "build", str(path), "--tokenizer", str(DEMO / "model")]
    command += ["--output", str(pool), "--overwrite"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdout=asyncio.subprocess.DEVNULL,
    )
    if await process.wait() != 0:
        raise RuntimeError("the pool could not be rebuilt")


async def _sampler(address: str, outcome: Outcome, end: float) -> None:
    port = address.rsplit(":", 1)[1]
    began = time.monotonic()
    while time.monotonic() < end:
        for process, name in _processes(port):
            numbers = _numbers(process)
            if numbers is not None:
                outcome.samples.append({"at": time.monotonic() - began, "process": name, **numbers})
        await asyncio.sleep(SAMPLE_SECONDS)


def _processes(port: str) -> Iterator[tuple[int, str]]:
    """The server that listens on a port, and its engines."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
    for process, command in commands.items():
        if f"--port {port}" in command and "api_server" in command:
            yield process, "server"
        elif command.startswith("VLLM::EngineCore") and _descends(process, port, parents, commands):
            yield process, "engine"


def _descends(process: int, port: str, parents: dict[int, int], commands: dict[int, str]) -> bool:
    while process in parents:
        process = parents[process]
        if f"--port {port}" in commands.get(process, ""):
            return True
    return False


def _numbers(process: int) -> dict[str, int] | None:
    """Memory of its own (not of mapped files) in bytes, open files and threads; None if it has ended."""
    folder = Path(f"/proc/{process}")
    try:
        rollup = (folder / "smaps_rollup").read_text().splitlines()
        anonymous = next(int(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:"))
        return {
            "memory": 1024 * anonymous,
            "files": len(os.listdir(folder / "fd")),
            "threads": len(os.listdir(folder / "task")),
        }
    except (OSError, StopIteration):
        return None


def _growth(samples: list[dict[str, Any]], seconds: float) -> dict[str, dict[str, float]]:
    """Of every process the medians of the first and of the last fifth of the time after the warm-up."""
    found: dict[str, dict[str, float]] = {}
    fifth = seconds * (1 - WARM_UP) / 5
    for process in sorted({sample["process"] for sample in samples}):
        own = [sample for sample in samples if sample["process"] == process]
        first = [one for one in own if seconds * WARM_UP <= one["at"] < seconds * WARM_UP + fifth]
        last = [one for one in own if one["at"] >= seconds - fifth]
        if not first or not last:
            continue
        numbers: dict[str, float] = {}
        for name in ("memory", "files", "threads"):
            numbers[f"{name}_after_warm_up"] = statistics.median(one[name] for one in first)
            numbers[f"{name}_at_the_end"] = statistics.median(one[name] for one in last)
        numbers["memory_growth_percent"] = 100 * (
            numbers["memory_at_the_end"] / numbers["memory_after_warm_up"] - 1
        )
        found[process] = numbers
    return found


if __name__ == "__main__":
    main()
