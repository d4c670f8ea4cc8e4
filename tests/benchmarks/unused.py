"""What the plugin costs an engine that does not use it: starting and generating, with it and without.

    python -m tests.benchmarks.unused --model examples/demo/model --prompts examples/demo/prompts.jsonl

Each arm runs in processes of its own, one at a time, the arms taking turns (with, without, without, with):
``with`` loads the plugin and configures nothing, ``without`` loads no plugin (``VLLM_PLUGINS`` is empty).
Other plugins are loaded in neither. Figures are ratios of the two processes of a pair, with 95 % t intervals
over the pairs of their logarithms: 1 is no difference. Processor time says more than a clock where others use
the machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

PLUGINS = {"with": "vllm_dare", "without": ""}

_LOAD = """
import json, sys, time
import vllm.engine.arg_utils
from vllm.plugins import load_general_plugins
before, began = set(sys.modules), time.perf_counter()
load_general_plugins()
print(json.dumps({"seconds": time.perf_counter() - began, "modules": sorted(set(sys.modules) - before)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with a 'prompt'")
    parser.add_argument("--limit", type=int, default=32, help="prompts")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument(
        "--rounds", type=int, default=5, help="of all prompts, in each engine; the median counts"
    )
    parser.add_argument(
        "--loads", type=int, default=6, help="pairs of processes that load plugins only, or 0"
    )
    parser.add_argument("--engines", type=int, default=4, help="pairs of engines, or 0")
    arguments = parser.parse_args()
    if os.environ.get("DARE_BENCHMARK_CHILD"):
        _generate(arguments)
        return
    if arguments.loads:
        _tell_loads(_in_turns(arguments.loads, _load))
    if arguments.engines:
        _tell_engines(_in_turns(arguments.engines, _engine))


def _tell_loads(loads: dict[str, list[dict[str, Any]]]) -> None:
    print(f"modules loaded because of the plugin: {', '.join(loads['with'][0]['modules']) or 'none'}")
    for arm, found in loads.items():
        times = [1000 * load["seconds"] for load in found]
        print(f"loading plugins, {arm}: {statistics.median(times):.2f} ms (up to {max(times):.2f})")
    _compare("a process that loads vLLM and its plugins, seconds", loads, "process_seconds")
    _compare("… seconds of processor time", loads, "processor_seconds")


def _tell_engines(engines: dict[str, list[dict[str, Any]]]) -> None:
    _compare("starting an engine, seconds", engines, "start_seconds")
    _compare("generating, tokens a second", engines, "tokens_per_second")
    _compare("starting and generating, seconds of processor time", engines, "processor_seconds")
    same = len({json.dumps(run["tokens"]) for runs in engines.values() for run in runs}) == 1
    print(f"all engines wrote the same tokens: {'yes' if same else 'no'}")


def _in_turns(pairs: int, run: Callable[[str], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in PLUGINS}
    for pair in range(pairs):
        for arm in list(PLUGINS)[:: -1 if pair % 2 else 1]:
            found[arm].append(run(arm))
            print(f"pair {pair + 1} of {pairs}, {arm}", file=sys.stderr, flush=True)
    return found


def _load(arm: str) -> dict[str, Any]:
    began = time.perf_counter()
    found = _child([sys.executable, "-c", _LOAD], arm)
    return {**found, "process_seconds": time.perf_counter() - began}


def _engine(arm: str) -> dict[str, Any]:
    return _child([sys.executable, "-m", "tests.benchmarks.unused", *sys.argv[1:]], arm)


def _child(command: list[str], arm: str) -> dict[str, Any]:
    environment = {"VLLM_PLUGINS": PLUGINS[arm], "DARE_BENCHMARK_CHILD": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the child and all that it has waited for
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return {**found, "processor_seconds": used}


def _generate(arguments: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams

    prompts = [json.loads(line)["prompt"] for line in arguments.prompts.read_text().splitlines()]
    prompts = prompts[: arguments.limit]
    began = time.perf_counter()
    llm = LLM(
        arguments.model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=arguments.max_num_seqs,
        kv_cache_memory_bytes=400_000_000,
        enable_prefix_caching=False,
    )
    start = time.perf_counter() - began
    params = SamplingParams(temperature=0, max_tokens=arguments.max_tokens, ignore_eos=True)
    llm.generate(prompts, params, use_tqdm=False)  # the first round pays for what is done once
    seconds = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    llm.llm_engine.engine_core.shutdown()
    rate = sum(map(len, tokens)) / statistics.median(seconds)
    print(json.dumps({"start_seconds": start, "tokens_per_second": rate, "tokens": tokens}))


def _compare(what: str, runs: dict[str, list[dict[str, Any]]], name: str) -> None:
    values = {arm: [run[name] for run in found] for arm, found in runs.items()}
    told = ", ".join(f"{statistics.median(found):.4g} {arm}" for arm, found in values.items())
    ratio, low, high = ratio_interval(values["with"], values["without"])
    print(
        f"{what}: {told}; ratio {ratio:.3f} ({low:.3f} to {high:.3f}, {len(values['with'])} pairs)",
        flush=True,
    )


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the pairs' ratios and its 95 % t interval; infinite from a single pair."""
    logs = np.log(np.array(numerators) / np.array(denominators))
    if len(logs) < 2:
        return float(np.exp(logs[0])), 0.0, float("inf")
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return float(middle), float(low), float(high)


if __name__ == "__main__":
    main()
