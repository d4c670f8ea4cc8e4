"""Generate with drafts in a Ray Data pipeline of your own, through Ray Data's own LLM stage.

    pip install 'vllm-dare[ray]'
    python examples/ray_data_llm.py

Run `make demo` once before: it builds the pool that this example reads. If all you want is the batch, see
examples/ray_batch.py, or use `vllm-dare generate --engine ray`: these also say why each text ended, go on
after a crash, and check that every row is there once (docs/ray.md).
"""

from pathlib import Path
from typing import Any

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from vllm_dare import request_args

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples/demo/model"
POOL = ROOT / "out/demo/pool"
PROMPTS = ROOT / "examples/demo/prompts.jsonl"  # or a directory of files
OUTPUT = ROOT / "out/ray-data-llm"


def request(row: dict[str, Any]) -> dict[str, Any]:
    """What the LLM stage wants: the group rides along in the row's own sampling parameters.

    Give every row the same keys: the rows become a table, which fills what is missing with None.
    """
    sampling = {"temperature": 0, "max_tokens": 512, "extra_args": request_args(group=row["group"])}
    return {"id": row["id"], "group": row["group"], "prompt": row["prompt"], "sampling_params": sampling}


def knowledge(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "group": row["group"], "text": row["generated_text"]}


def main() -> None:
    ray.init()
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    config = vLLMEngineProcessorConfig(
        model_source=str(MODEL),
        engine_kwargs={
            # A quick start and a small cache for an example; leave both out in production.
            "enforce_eager": True,
            "kv_cache_memory_bytes": 2**30,
            "speculative_config": {
                "method": "custom_class",
                "model": "vllm_dare.DareProposer",
                "num_speculative_tokens": 16,
            },
            "additional_config": {"dare": {"pool": str(POOL)}},
        },
        concurrency=1,  # engines
        batch_size=64,
        log_engine_metrics=False,  # on Ray's dashboard, which `pip install 'ray[default]'` brings
        # Ray Data gives each engine a GPU unless it is told otherwise.
        placement_group_config=None if has_gpus else {"bundles": [{"CPU": 1}]},
        # The prompts are whole: vLLM itself turns them into tokens and back.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    generate = build_processor(config, preprocess=request, postprocess=knowledge)
    prompts = ray.data.read_json(str(PROMPTS), lines=True).sort(
        "group"
    )  # an engine sees a group's rows together
    generate(prompts).write_parquet(str(OUTPUT), partition_cols=["group"])


if __name__ == "__main__":
    main()
