"""Sampled and relaxed requests: distributions, seeds, and what relaxing may and may not do."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import spec_counters

pytestmark = pytest.mark.filterwarnings("default")

SAMPLES = 1500


@pytest.fixture(scope="module")
def plain(start_engine: Callable[..., Any], demo_model: str) -> Any:
    return start_engine(demo_model, max_num_seqs=64)


@pytest.fixture(scope="module")
def dare(start_engine: Callable[..., Any], demo_model: str, demo_pool: Path) -> Any:
    """Small steps, so that seeded prompts are prefilled in chunks; all drafts, whatever they cost here."""
    settings = {"pool": str(demo_pool), "draft_budget": "fixed"}
    return start_engine(demo_model, settings, max_num_seqs=64, max_num_batched_tokens=1100)


def generate(engine: Any, prompts: list[str], **params: Any) -> list[tuple[int, ...]]:
    from vllm import SamplingParams

    outputs = engine.generate(prompts, SamplingParams(**params), use_tqdm=False)
    return [tuple(sample.token_ids) for output in outputs for sample in output.outputs]


def same_distribution(left: list[Any], right: list[Any]) -> float:
    """The p-value of a chi-square test of two samples, rare values pooled; 1 where all values are one."""
    from scipy.stats import chi2_contingency

    one, other = Counter(left), Counter(right)
    frequent = [value for value in one.keys() | other.keys() if one[value] + other[value] >= 20]
    table = [[counts[value] for value in frequent] for counts in (one, other)]
    for row, counts in zip(table, (one, other), strict=True):
        row.append(counts.total() - sum(row))
    if table[0][-1] + table[1][-1] < 20:
        table = [row[:-1] for row in table]
    if len(table[0]) < 2:
        return 1.0
    return float(chi2_contingency(table).pvalue)


@pytest.mark.parametrize(
    "params",
    [{"temperature": 0.8}, {"temperature": 1.3, "top_k": 5}, {"temperature": 1.3, "top_p": 0.9}],
    ids=str,
)
def test_strict_sampling_has_the_targets_distribution(
    plain: Any, dare: Any, demo_prompts: list[dict[str, Any]], params: dict[str, Any]
) -> None:
    prompts = [demo_prompts[0]["prompt"]] * SAMPLES
    before = spec_counters(dare)
    expected = generate(plain, prompts, max_tokens=10, **params)
    got = generate(dare, prompts, max_tokens=10, **params)
    after = spec_counters(dare)
    assert after["num_accepted_tokens"] - before["num_accepted_tokens"] > SAMPLES / 2
    assert len(set(expected)) > 20, "the test needs some variety"
    for first, last in ((0, 1), (0, 3), (3, 5), (5, 7), (8, 10)):
        part = slice(first, last)
        assert same_distribution([t[part] for t in expected], [t[part] for t in got]) > 1e-4


def test_a_seeded_request_repeats_itself(dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    from vllm import SamplingParams

    prompts = [row["prompt"] for row in demo_prompts[:12]]
    params = [
        SamplingParams(
            temperature=0.9,
            seed=number,
            max_tokens=80,
            extra_args={"dare_verification": ("strict", "relaxed")[number % 2]},
        )
        for number in range(12)
    ]

    def run(order: range) -> dict[int, list[int]]:
        outputs = dare.generate([prompts[i] for i in order], [params[i] for i in order], use_tqdm=False)
        return {i: list(output.outputs[0].token_ids) for i, output in zip(order, outputs, strict=True)}

    assert run(range(12)) == run(range(11, -1, -1))


def test_several_samples_of_one_prompt_differ_and_repeat(
    dare: Any, demo_prompts: list[dict[str, Any]]
) -> None:
    prompt = [demo_prompts[1]["prompt"]]
    first = generate(dare, prompt, n=3, temperature=0.9, seed=11, max_tokens=60)
    assert len(set(first)) == 3
    assert generate(dare, prompt, n=3, temperature=0.9, seed=11, max_tokens=60) == first


def test_relaxed_without_a_budget_equals_strict(dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    prompts = [row["prompt"] for row in demo_prompts[:12]]
    params = {"temperature": 0.0, "max_tokens": 120}
    strict = generate(dare, prompts, **params)
    assert strict == generate(
        dare, prompts, **params, extra_args={"dare_verification": "relaxed", "dare_max_relaxed": 0}
    )


def test_strict_requests_beside_relaxed_ones_are_not_touched(
    plain: Any, dare: Any, demo_prompts: list[dict[str, Any]]
) -> None:
    from vllm import SamplingParams

    prompts = [row["prompt"] for row in demo_prompts[:24]]
    expected = generate(plain, prompts, temperature=0, max_tokens=150)
    mixed = [
        SamplingParams(temperature=0, max_tokens=150, extra_args={"dare_preset": "paper"} if i % 2 else None)
        for i in range(24)
    ]
    got = [tuple(o.outputs[0].token_ids) for o in dare.generate(prompts, mixed, use_tqdm=False)]
    assert got[::2] == expected[::2]
    assert got[1::2] != expected[1::2], "relaxing should have changed some text"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_relaxed_token_obeys_the_rule_and_log_probs_are_the_targets(
    dare: Any, demo_prompts: list[dict[str, Any]], temperature: float
) -> None:
    """A greedy token that is not the target's first choice must be its second, probable enough, no stop token
    and not in place of one; in sampled requests relaxing must at least leave the reported ranks sane."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=temperature,
        seed=3,
        max_tokens=150,
        logprobs=2,
        extra_args={"dare_preset": "fast", "dare_top_k": 2, "dare_min_prob": 0.2},
    )
    outputs = dare.generate([row["prompt"] for row in demo_prompts[:24]], params, use_tqdm=False)
    eos = dare.get_tokenizer().eos_token_id
    second = 0
    for output in outputs:
        for token, choices in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
            chosen = choices[token]
            assert chosen.logprob < 1e-6
            if temperature == 0 and chosen.rank > 1:
                best = next(t for t, choice in choices.items() if choice.rank == 1)
                assert chosen.rank == 2
                assert math.exp(chosen.logprob) > 0.2
                assert eos not in {token, best}
            second += chosen.rank == 2
    assert second > 0


def test_relaxing_accepts_more(dare: Any, demo_prompts: list[dict[str, Any]]) -> None:
    prompts = [row["prompt"] for row in demo_prompts[:24]]
    steps = {}
    rules = {"strict": {"dare_verification": "strict"}, "fast": {"dare_preset": "fast"}}
    for mode, rule in rules.items():
        before = spec_counters(dare)
        texts = generate(
            dare,
            prompts,
            temperature=0.7,
            seed=1,
            max_tokens=200,
            extra_args=rule,
        )
        accepted = spec_counters(dare)["num_accepted_tokens"] - before["num_accepted_tokens"]
        tokens = sum(map(len, texts))
        steps[mode] = tokens / (tokens - accepted)
    assert steps["fast"] > 1.02 * steps["strict"]
