"""Record what steps of a real engine cost: `tests/unit/drafting/recorded_costs.json`.

The number of drafts per sequence changes from step to step, so that a slow minute of the machine slows all
of them; steps that prefill are left out. Drafts are the pool's, filled up with token 7 to the number wanted.

    .venv/bin/python -m tests.benchmarks.step_costs \\
        --model MODEL --pool POOL --prompts prompts.jsonl --output costs.json
"""

import argparse
import json
import os
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

SEQUENCES = (1, 4, 16, 64)
DRAFTS = (0, 1, 2, 4, 8, 16)
FILLER = 7


class Recorder:
    """Stands in for the proposer's `propose`: wants so many drafts a step and notes how long steps take."""

    def __init__(self, proposer: Any, sequences: int) -> None:
        self.proposer, self.sequences = proposer, sequences
        self.draft = proposer._propose
        self.seconds: dict[int, list[float]] = defaultdict(list)
        self.wanted = 0
        self.began = 0.0
        self.random = random.Random(0)

    def propose(self, sampled: list[list[int]], sizes: Any, texts: Any, **_: Any) -> list[list[int]]:
        now = time.perf_counter()
        scheduled = np.diff(self.proposer._runner.query_start_loc.np[: len(sampled) + 1])
        if len(sampled) == self.sequences and (scheduled == self.wanted + 1).all():
            self.seconds[self.wanted].append(now - self.began)
        self.began = time.perf_counter()
        self.wanted = self.random.choice(DRAFTS)
        if self.wanted == 0:
            return [[] for _ in sampled]
        drafts = self.draft(sampled, sizes, texts)
        fill = [FILLER] * self.wanted
        return [(row + fill)[: self.wanted] for row in drafts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pool", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with `prompt`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=400, help="written by each sequence")
    parser.add_argument("--steps", type=int, default=500, help="recorded for each curve, at least")
    arguments = parser.parse_args()
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING")
    from vllm import LLM, SamplingParams

    prompts = [json.loads(line)["prompt"] for line in arguments.prompts.read_text().splitlines()]
    llm = LLM(
        arguments.model,
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=max(SEQUENCES),
        max_num_batched_tokens=4096,
        kv_cache_memory_bytes=2 * 1024**3,
        enforce_eager=True,
        speculative_config={
            "method": "custom_class",
            "model": "vllm_dare.DareProposer",
            "num_speculative_tokens": max(DRAFTS),
        },
        additional_config={"dare": {"pool": arguments.pool, "draft_budget": "fixed"}},
    )
    proposer = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.drafter
    curves = []
    for temperature in (0.0, 0.7):
        for sequences in SEQUENCES:
            recorder = Recorder(proposer, sequences)
            proposer.propose = recorder.propose
            while sum(map(len, recorder.seconds.values())) < arguments.steps:
                params = SamplingParams(temperature=temperature, max_tokens=arguments.tokens, ignore_eos=True)
                llm.generate(prompts[:sequences], params, use_tqdm=False)
            medians = [round(1e3 * float(np.median(recorder.seconds[drafts])), 3) for drafts in DRAFTS]
            steps = sum(map(len, recorder.seconds.values()))
            print(temperature, sequences, medians, steps, flush=True)
            curves.append({"temperature": temperature, "sequences": sequences, "milliseconds": medians})
    text = json.dumps({"drafts_per_sequence": DRAFTS, "curves": curves}, indent=1)
    arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
