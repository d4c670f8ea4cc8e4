"""Replay against the engine: the same texts, the same drafts, the same number of steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import spec_counters

pytestmark = pytest.mark.filterwarnings("default")

MAX_TOKENS = 200


def test_replay_takes_the_engines_steps(
    start_engine: Callable[..., Any], demo_model: str, demo_pool: Path, demo_prompts: list[dict[str, Any]]
) -> None:
    from vllm import SamplingParams

    from vllm_dare.drafting.drafter import Drafter
    from vllm_dare.evaluation.replay import DareArm, replay
    from vllm_dare.evaluation.walk import Text
    from vllm_dare.pool.pool import RetrievalPool

    engine = start_engine(demo_model, {"pool": str(demo_pool), "draft_budget": "fixed"}, max_num_seqs=8)
    rows = demo_prompts[:40]
    groups = [row["group"] if i % 3 else None for i, row in enumerate(rows)]
    outputs = engine.generate(
        [row["prompt"] for row in rows],
        [
            SamplingParams(
                temperature=0.0, max_tokens=MAX_TOKENS, extra_args={"dare_group": group} if group else None
            )
            for group in groups
        ],
        use_tqdm=False,
    )
    counters = spec_counters(engine)
    texts = [
        Text(
            str(i),
            np.array(output.outputs[0].token_ids, np.int32),
            np.array(output.prompt_token_ids, np.int32),
            group,
            MAX_TOKENS,
        )
        for i, (output, group) in enumerate(zip(outputs, groups, strict=True))
    ]
    assert len({output.outputs[0].finish_reason for output in outputs}) == 2, "some end, some are cut"
    with RetrievalPool.open(demo_pool) as pool:
        drafter = Drafter(pool, 16, pool.tokenizer.vocab_size)
        (result,) = replay(texts, [DareArm(drafter)])
    tokens = sum(len(text.output) for text in texts)
    assert result.tally.tokens == tokens
    assert result.tally.steps == tokens - counters["num_accepted_tokens"]
