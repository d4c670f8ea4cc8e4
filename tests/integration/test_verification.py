"""Relaxed rules in a real engine: budgets, meters, and what of vLLM's sampling works with speculation."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Else the demo's model, which knows no JSON, may go on with blanks for ever.
NO_BLANKS = {"backend": "xgrammar", "disable_any_whitespace": True}
PRESETS = ("content", "careful", "fast", "paper", "fly")


@pytest.fixture(scope="module")
def dare(start_engine: Callable[..., Any], demo_model: str, demo_pool: Path) -> Any:
    settings = {"pool": str(demo_pool), "draft_budget": "fixed"}
    return start_engine(
        demo_model,
        settings,
        max_num_seqs=32,
        per_request_spec_decode_metrics="summary",
        structured_outputs_config=NO_BLANKS,
    )


def run(engine: Any, prompts: list[str], **params: Any) -> list[Any]:
    from vllm import SamplingParams

    options = {"temperature": 0.8, "seed": 7, "max_tokens": 100, **params}
    outputs = engine.generate(prompts, SamplingParams(**options), use_tqdm=False)
    return [output.outputs[0] for output in outputs]


@pytest.fixture(scope="module")
def prompts(demo_prompts: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"] for row in demo_prompts[:16]]


def meters(completions: list[Any]) -> list[dict[str, float]]:
    return [completion.spec_decode_metrics.dare for completion in completions]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_meters_add_up_to_what_vllm_accepted(
    dare: Any, prompts: list[str], preset: str, temperature: float
) -> None:
    completions = run(dare, prompts, temperature=temperature, extra_args={"dare_preset": preset})
    for completion, told in zip(completions, meters(completions), strict=True):
        accepted = completion.spec_decode_metrics.to_dict()["num_accepted_draft_tokens"]
        assert told["exact"] + told["relaxed"] == accepted
        assert completion.spec_decode_metrics.to_dict()["dare"] == told
        assert told["given_up"] >= 0
        assert (told["given_up_per_token"] > 0) == (told["given_up"] > 0)
    if (preset, temperature) == ("fast", 0.8):
        assert sum(told["relaxed"] for told in meters(completions)) > 10


def test_strict_requests_have_no_meters(dare: Any, prompts: list[str]) -> None:
    for completion in run(dare, prompts[:2]):
        assert completion.spec_decode_metrics.dare is None
        assert "dare" not in completion.spec_decode_metrics.to_dict()


def test_budgets_hold_over_a_request(dare: Any, prompts: list[str]) -> None:
    keys = {"dare_preset": "fast"}
    free = meters(run(dare, prompts, extra_args=keys))
    total = meters(run(dare, prompts, extra_args=keys | {"dare_max_relaxed": 2}))
    assert max(told["relaxed"] for told in free) > 2
    assert max(told["relaxed"] for told in total) == 2
    assert sum(told["budget_stops"] for told in total) > 0
    completions = run(dare, prompts, extra_args=keys | {"dare_max_relaxed_per_100": 4})
    for completion, told in zip(completions, meters(completions), strict=True):
        assert told["relaxed"] <= 4 * len(completion.token_ids) / 100
    assert sum(told["relaxed"] for told in meters(completions)) > 0


def test_no_relaxed_token_costs_more_than_the_ratio_allows(dare: Any, prompts: list[str]) -> None:
    import math

    keys = {"dare_preset": "fast", "dare_min_ratio": 0.5, "dare_max_relaxed": 1}
    for told in meters(run(dare, prompts, extra_args=keys)):
        assert told["given_up"] <= math.log(2) + 1e-4


def test_one_batch_mixes_all_rules_and_each_keeps_its_own(dare: Any, prompts: list[str]) -> None:
    from vllm import SamplingParams

    keys: list[dict[str, Any]] = [{"dare_preset": preset} for preset in PRESETS]
    keys += [{}, {"dare_preset": "paper", "dare_max_relaxed": 0}]

    def params(number: int) -> Any:
        return SamplingParams(temperature=0.0, max_tokens=80, extra_args=keys[number % len(keys)])

    together = dare.generate(prompts, [params(i) for i in range(len(prompts))], use_tqdm=False)
    alone = [dare.generate([prompts[i]], params(i), use_tqdm=False)[0] for i in range(len(prompts))]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]


def test_protected_tokens_are_never_relaxed(dare: Any, prompts: list[str]) -> None:
    """All tokens listed: what is kept is what vLLM's own rule accepts."""
    tokenizer = dare.get_tokenizer()
    everything = list(range(len(tokenizer)))
    keys = {"dare_preset": "fast", "dare_never_relax": everything}
    assert sum(told["relaxed"] for told in meters(run(dare, prompts[:4], extra_args=keys))) == 0
    for kind in ("digits", "json", "quoted"):
        run(dare, prompts[:4], extra_args={"dare_preset": "fast", "dare_protect": [kind]})
    keys = {"dare_preset": "fast", "dare_never_relax": ["a", "e"]}
    assert len(run(dare, prompts[:4], extra_args=keys)) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_vllm_promises_of_sampling_holds_under_the_loosest_rule(
    dare: Any, prompts: list[str], temperature: float
) -> None:
    loose = {"dare_preset": "fast", "dare_top_k": 50, "dare_min_prob": 0.0, "dare_min_ratio": 0.0}
    common = {"temperature": temperature, "extra_args": loose}
    tokenizer = dare.get_tokenizer()
    tokens = Counter(token for completion in run(dare, prompts, **common) for token in completion.token_ids)
    # vLLM bans a word with a blank before it only where it is as many tokens without.
    banned, word = next(
        (token, tokenizer.decode([token]).strip())
        for token, _ in tokens.most_common()
        if len(tokenizer.encode(tokenizer.decode([token]).strip(), add_special_tokens=False)) == 1
    )
    for completion in run(dare, prompts, bad_words=[word], **common):
        assert banned not in completion.token_ids
    assert all(len(completion.token_ids) >= 60 for completion in run(dare, prompts, min_tokens=60, **common))
    for completion in run(dare, prompts, presence_penalty=1.5, frequency_penalty=1.5, **common):
        assert len(set(completion.token_ids)) > 0.4 * len(completion.token_ids)
    allowed = [5, 6, 7, 8, 9]
    for completion in run(dare, prompts[:4], allowed_token_ids=allowed, max_tokens=20, **common):
        assert set(completion.token_ids) <= set(allowed)
    if temperature:
        first, second = (run(dare, prompts[:4], top_p=0.6, **common) for _ in range(2))
        assert [c.token_ids for c in first] == [c.token_ids for c in second], (
            "seeded requests repeat themselves"
        )


def test_a_grammar_holds_under_the_loosest_rule(dare: Any, prompts: list[str]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    schema = {
        "type": "object",
        "properties": {
            "likes": {"type": "boolean"},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["likes", "stars"],
        "additionalProperties": False,
    }
    loose = {"dare_preset": "fast", "dare_top_k": 50, "dare_min_prob": 0.0}
    for temperature in (0.0, 0.9):
        completions = run(
            dare,
            prompts[:4],
            temperature=temperature,
            structured_outputs=StructuredOutputsParams(json=schema),
            extra_args=loose,
        )
        for completion in completions:
            if completion.finish_reason == "stop":
                assert set(json.loads(completion.text)) == {"likes", "stars"}
        assert any(completion.finish_reason == "stop" for completion in completions)


def test_several_samples_each_with_their_own_meters(dare: Any, prompts: list[str]) -> None:
    from vllm import SamplingParams

    params = SamplingParams(
        n=3, temperature=0.9, seed=3, max_tokens=60, extra_args={"dare_preset": "fast", "dare_max_relaxed": 5}
    )
    (output,) = dare.generate(prompts[:1], params, use_tqdm=False)
    assert len({tuple(sample.token_ids) for sample in output.outputs}) == 3
    assert all(sample.spec_decode_metrics.dare["relaxed"] <= 5 for sample in output.outputs)


def test_prompt_log_probs_come_with_relaxed_requests(dare: Any, prompts: list[str]) -> None:
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=40, logprobs=1, prompt_logprobs=1, extra_args={"dare_preset": "fast"}
    )
    (output,) = dare.generate(prompts[:1], params, use_tqdm=False)
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    completion = output.outputs[0]
    assert len(completion.logprobs) == len(completion.token_ids)
    given_up = sum(
        max(choice.logprob for choice in choices.values()) - choices[token].logprob
        for token, choices in zip(completion.token_ids, completion.logprobs, strict=True)
    )
    assert given_up == pytest.approx(completion.spec_decode_metrics.dare["given_up"], abs=1e-2)
