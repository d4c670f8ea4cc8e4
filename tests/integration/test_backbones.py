"""Strict mode on other architectures than the demo's: tiny models with random weights, in float32."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import DEMO, read_rows
from .one_process import run_engines

pytestmark = pytest.mark.filterwarnings("default")

PARAMS = {"temperature": 0.0, "max_tokens": 64}
NUM_PROMPTS = 8
SMALL = {
    "vocab_size": 3863,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # vLLM's smallest on CPU
    "max_position_embeddings": 512,
    "initializer_range": 0.4,  # large, so that the text varies
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
# Windows shorter than a prompt, so that they matter.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 32},
    "Gemma2": {"sliding_window": 32, "query_pre_attn_scalar": 32},
    "Gemma3Text": {
        "sliding_window": 32,
        "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
}
MAKE_MODELS = """
import json, sys
import torch, transformers
for name, settings in json.loads(sys.argv[2]).items():
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)
    for parameter, weight in model.named_parameters():
        # Gemma's tied embeddings would repeat the last token for ever: let the layers speak louder.
        if name.startswith("Gemma") and "post_" in parameter:
            torch.nn.init.constant_(weight, 50.0)
    model.save_pretrained(f"{sys.argv[1]}/{name}")
"""


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, pool_of: Callable[[str, list[list[int]]], Path]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Of each architecture, what plain vLLM made of it and what DARE made of it."""
    folder = tmp_path_factory.mktemp("backbones")
    models = make_models(folder)
    prompts = tokenize([row["prompt"] for row in read_rows(DEMO / "prompts.jsonl", NUM_PROMPTS)])
    jobs = [{"model": model, "prompts": prompts, "params": PARAMS} for model in models]
    plain = run_engines(jobs, folder, plugins="")
    for job, result in zip(jobs, plain, strict=True):
        pool = pool_of(job["model"], disturbed(result.get("outputs", prompts)))
        job["dare"] = {"pool": str(pool), "draft_budget": "fixed"}
        job["extra_args"] = [{"dare_group": "g"}, None] * (NUM_PROMPTS // 2)
    dare = run_engines(jobs, folder)
    return dict(zip(ARCHITECTURES, zip(plain, dare, strict=True), strict=True))


def make_models(folder: Path) -> list[str]:
    """Make them in a process of its own, to keep torch out of this one."""
    settings = json.dumps({name: SMALL | special for name, special in ARCHITECTURES.items()})
    subprocess.run([sys.executable, "-c", MAKE_MODELS, str(folder), settings], check=True)
    for name in ARCHITECTURES:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / "model" / file, folder / name)
    return [str(folder / name) for name in ARCHITECTURES]


def tokenize(texts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO / "model" / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in texts]


def disturbed(outputs: list[list[int]]) -> list[list[int]]:
    """The outputs of half the prompts with one token in ten changed, so that some drafts are wrong."""
    random = np.random.default_rng(0)
    texts = [list(output) for output in outputs[: NUM_PROMPTS // 2]]
    for text in texts:
        for place in random.choice(len(text), len(text) // 10, replace=False):
            text[place] = (text[place] + 1) % SMALL["vocab_size"]
    return texts


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_strict_output_is_plain_vllms(
    results: dict[str, tuple[dict[str, Any], dict[str, Any]]], name: str
) -> None:
    plain, dare = results[name]
    if "error" in plain:
        pytest.skip(f"plain vLLM cannot run it: {plain['error']}")
    assert "error" not in dare, dare["error"]
    assert len({tuple(output) for output in plain["outputs"]}) > NUM_PROMPTS // 2
    assert sum(len(set(output)) > 6 for output in plain["outputs"]) > NUM_PROMPTS // 2, "text should vary"
    assert dare["outputs"] == plain["outputs"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_drafts_are_accepted_and_rejected(
    results: dict[str, tuple[dict[str, Any], dict[str, Any]]], name: str
) -> None:
    plain, dare = results[name]
    if "error" in plain:
        pytest.skip(f"plain vLLM cannot run it: {plain['error']}")
    counters = dare["counters"]
    in_pool = sum(len(output) for output in plain["outputs"][: NUM_PROMPTS // 2])
    assert in_pool / 3 < counters["num_accepted_tokens"] < counters["num_draft_tokens"]
