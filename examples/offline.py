"""Generate with drafts from a retrieval pool, in a program of your own.

Run `make demo` once before: it builds the pool that this example reads.
"""

import json
from itertools import islice
from pathlib import Path

from vllm import LLM, SamplingParams

from vllm_dare import request_args

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples/demo/model"
POOL = ROOT / "out/demo/pool"
PROMPTS = ROOT / "examples/demo/prompts.jsonl"


def main() -> None:
    llm = LLM(
        str(MODEL),
        # A quick start and a small cache for an example; leave both out in production.
        enforce_eager=True,
        kv_cache_memory_bytes=2**30,
        speculative_config={
            "method": "custom_class",
            "model": "vllm_dare.DareProposer",
            "num_speculative_tokens": 16,
        },
        # Strict verification, the default: the text that vLLM writes without drafts.
        additional_config={"dare": {"pool": str(POOL)}},
    )
    with PROMPTS.open() as lines:
        rows = [json.loads(line) for line in islice(lines, 3)]
    # Each request says whose texts to draft from: a group, or a user or item that the pool has a group for.
    params = [
        SamplingParams(temperature=0, max_tokens=512, extra_args=request_args(group=row["group"]))
        for row in rows
    ]
    for row, output in zip(rows, llm.generate([row["prompt"] for row in rows], params), strict=True):
        print(f"\n{row['id']} of {row['group']}:\n{output.outputs[0].text.strip()}")


if __name__ == "__main__":  # vLLM starts worker processes, which import this file again
    main()
