"""Strict mode against vLLM without the plugin, token for token, through everything a request may ask for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import spec_counters

pytestmark = pytest.mark.filterwarnings("default")

SCHEMA = {
    "type": "object",
    "properties": {
        "genre": {"enum": ["mystery", "horror", "romance"]},
        "stars": {"type": "integer", "maximum": 5},
    },
    "required": ["genre", "stars"],
}


@pytest.fixture(scope="module")
def plain(start_engine: Callable[..., Any], demo_model: str) -> Any:
    return start_engine(demo_model, max_num_seqs=16)


@pytest.fixture(scope="module")
def dare(start_engine: Callable[..., Any], demo_model: str, demo_pool: Path) -> Any:
    """Small steps, so that prompts are prefilled in chunks; prefix caching is vLLM's default."""
    return start_engine(demo_model, {"pool": str(demo_pool)}, max_num_seqs=16, max_num_batched_tokens=320)


def group_keys(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A mix of what requests may say: a group, a user, nothing, a group that does not exist."""
    return [{"dare_group": row["group"]}, {"dare_user": row["user"]}, {}, {"dare_group": "nobody"}][
        number % 4
    ]


def compare(plain: Any, dare: Any, rows: list[dict[str, Any]], **params: Any) -> list[Any]:
    """Run both engines on the rows, assert that all outputs are the same, and return them."""
    from vllm import SamplingParams

    settings = {"temperature": 0.0, "max_tokens": 200, **params}
    prompts = [row["prompt"] for row in rows]
    expected = plain.generate(prompts, SamplingParams(**settings), use_tqdm=False)
    got = dare.generate(
        prompts,
        [SamplingParams(**settings, extra_args=group_keys(row, i)) for i, row in enumerate(rows)],
        use_tqdm=False,
    )
    for left, right in zip(expected, got, strict=True):
        for one, other in zip(left.outputs, right.outputs, strict=True):
            assert list(one.token_ids) == list(other.token_ids)
            assert (one.text, one.finish_reason, one.stop_reason) == (
                other.text,
                other.finish_reason,
                other.stop_reason,
            )
    return got


def test_sixteen_at_a_time_with_mixed_groups(
    plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]
) -> None:
    before = spec_counters(dare)
    outputs = compare(plain, dare, demo_prompts[:60], max_tokens=400)
    after = spec_counters(dare)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    accepted = after["num_accepted_tokens"] - before["num_accepted_tokens"]
    assert tokens / (tokens - accepted) > 1.2, "drafts should have been accepted, however slow the machine"


def test_a_seeded_request_writes_the_same_in_a_crowd(dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    """A sampled request draws random numbers for its drafts; the draft budget must not cut them."""
    from vllm import SamplingParams

    prompts = [row["prompt"] for row in demo_prompts[:16]]
    seeded = SamplingParams(temperature=0.8, seed=7, max_tokens=100)
    others = [SamplingParams(temperature=0.8, max_tokens=100)] * 15
    alone = dare.generate(prompts[:1], seeded, use_tqdm=False)[0]
    crowded = dare.generate(prompts, [seeded, *others], use_tqdm=False)[0]
    assert crowded.outputs[0].token_ids == alone.outputs[0].token_ids


def test_one_at_a_time(plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    for number in range(8):
        compare(plain, dare, demo_prompts[number : number + 1])


def test_stop_strings_and_stop_tokens(plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    outputs = compare(plain, dare, demo_prompts[:8], stop=["."])
    assert {output.outputs[0].stop_reason for output in outputs} == {"."}
    token = compare(plain, dare, demo_prompts[:1])[0].outputs[0].token_ids[20]
    outputs = compare(plain, dare, demo_prompts[:4], stop_token_ids=[token])
    assert outputs[0].outputs[0].stop_reason == token


def test_penalties_bad_words_bias_and_minimum_length(
    plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]
) -> None:
    rows = demo_prompts[:6]
    compare(plain, dare, rows, presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.2)
    compare(plain, dare, rows, bad_words=["the", "mystery"])
    compare(plain, dare, rows, min_tokens=60, stop=["."])


def test_log_probs_are_the_targets(plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    from vllm import SamplingParams

    prompts = [row["prompt"] for row in demo_prompts[:4]]
    params = SamplingParams(temperature=0, max_tokens=80, logprobs=3)
    for left, right in zip(
        plain.generate(prompts, params, use_tqdm=False),
        dare.generate(prompts, params, use_tqdm=False),
        strict=True,
    ):
        one, other = left.outputs[0], right.outputs[0]
        assert list(one.token_ids) == list(other.token_ids)
        for expected, got in zip(one.logprobs, other.logprobs, strict=True):
            assert expected.keys() == got.keys()
            assert [got[k].logprob for k in expected] == pytest.approx(
                [v.logprob for v in expected.values()], abs=1e-3
            )


def test_json_schema(plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    import json

    from vllm.sampling_params import StructuredOutputsParams

    outputs = compare(
        plain, dare, demo_prompts[:4], structured_outputs=StructuredOutputsParams(json=SCHEMA), max_tokens=120
    )
    finished = [output.outputs[0].text for output in outputs if output.outputs[0].finish_reason == "stop"]
    for text in finished:
        assert set(json.loads(text)) == {"genre", "stars"}


def test_prompts_near_the_models_limit(plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    """Outputs that run into max_model_len, beside one that does not."""
    from vllm import SamplingParams

    tokenizer = plain.get_tokenizer()
    ids = tokenizer.encode(" ".join(row["prompt"] for row in demo_prompts[:30]))
    prompts = [{"prompt_token_ids": ids[:size]} for size in (1023, 1022, 1015, 1008, 1000, 960, 100)]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    expected = plain.generate(prompts, params, use_tqdm=False)
    got = dare.generate(prompts, params, use_tqdm=False)
    for left, right in zip(expected, got, strict=True):
        assert list(left.outputs[0].token_ids) == list(right.outputs[0].token_ids)
        assert left.outputs[0].finish_reason == right.outputs[0].finish_reason


def test_aborted_and_reused_request_ids(plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    """The same ids again and again, for other prompts, some given up half way."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=60)
    prompts = [row["prompt"] for row in demo_prompts[:8]]
    expected = [list(o.outputs[0].token_ids) for o in plain.generate(prompts, params, use_tqdm=False)]
    core = dare.llm_engine
    results: dict[int, list[int]] = {}
    for start in (0, 4):
        for slot in range(4):
            core.add_request(f"same-{slot}", prompts[start + slot], params)
        for _ in range(3):
            core.step()
        core.abort_request([f"same-{slot}" for slot in range(2)])
        for slot in range(2):
            core.add_request(f"same-{slot}", prompts[start + slot], params)
        while core.has_unfinished_requests():
            for output in core.step():
                if output.finished and output.outputs[0].finish_reason != "abort":
                    results[start + int(output.request_id[-1])] = list(output.outputs[0].token_ids)
    assert [results[i] for i in range(8)] == expected


def test_an_unknown_request_key_is_refused_and_the_engine_lives(
    plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]
) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    for extra_args, key in (({"dare_grup": "x"}, "dare_grup"), ({"dare_top_k": 0}, "dare_top_k")):
        with pytest.raises(VLLMValidationError, match=key):
            dare.generate("x", SamplingParams(extra_args=extra_args), use_tqdm=False)
    compare(plain, dare, demo_prompts[:2])


def test_preemption(
    plain: Any,
    start_engine: Callable[..., Any],
    demo_model: str,
    demo_pool: Path,
    demo_prompts: list[dict[str, Any]],
) -> None:
    """A cache for about two of the eight running requests: they take turns."""
    crowded = start_engine(
        demo_model, {"pool": str(demo_pool)}, max_num_seqs=8, num_gpu_blocks_override=8, max_model_len=768
    )
    compare(plain, crowded, demo_prompts[:8], max_tokens=300)
    preempted = {m.name: m.value for m in crowded.get_metrics() if m.name == "vllm:num_preemptions"}
    assert preempted["vllm:num_preemptions"] > 0
