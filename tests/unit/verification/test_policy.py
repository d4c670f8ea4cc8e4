"""The acceptance rule against a plain-Python oracle, and what forcing does to vLLM's decisions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from vllm_dare.verification.policy import force_tokens, relaxed_acceptance  # noqa: E402


def oracle(
    logits: list[float], draft: int, top_k: int, min_prob: float, min_ratio: float, stops: list[int]
) -> bool:
    if draft < 0 or top_k < 2 or logits[draft] == -math.inf:
        return False
    best = max(range(len(logits)), key=lambda token: (logits[token], -token))
    if draft in stops or best in stops:
        return False
    weights = [math.exp(logit - logits[best]) for logit in logits]
    prob = weights[draft] / sum(weights)
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    return order.index(draft) < top_k and prob > min_prob and weights[draft] >= min_ratio


def accept(rows: list[tuple[list[float], int, int, float, float, list[int]]]) -> list[bool]:
    width = max(len(row[5]) for row in rows)
    return relaxed_acceptance(
        torch.tensor([row[0] for row in rows], dtype=torch.float32),
        torch.tensor([row[1] for row in rows], dtype=torch.int32),
        torch.tensor([row[2] for row in rows]),
        torch.tensor([row[3] for row in rows]),
        torch.tensor([row[4] for row in rows]),
        torch.tensor([[*row[5], *[-1] * (width - len(row[5]))] for row in rows], dtype=torch.int64),
    ).tolist()


# Multiples of a half make ties frequent; -inf is a masked token.
logit = st.one_of(st.integers(-6, 6).map(lambda x: x / 2), st.just(-math.inf))
row = st.tuples(
    st.lists(logit, min_size=6, max_size=6).filter(lambda row: max(row) > -math.inf),
    st.integers(-1, 5),
    st.integers(0, 4),
    # Bounds that no reachable probability hits exactly, so that float32 and float64 agree.
    st.sampled_from([0.0, 0.0501, 0.1003, 0.3007, 0.9001]),
    st.sampled_from([0.0, 0.2503, 0.7001, 0.9999]),
    st.lists(st.integers(0, 5), max_size=2),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(row, min_size=1, max_size=8))
def test_rule_equals_plain_python(
    rows: list[tuple[list[float], int, int, float, float, list[int]]],
) -> None:
    assert accept(rows) == [oracle(*row) for row in rows]


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.8), (20, 0.9)])
def test_rule_on_processed_logits_of_sampled_requests(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Temperature, top-k and top-p are applied by vLLM before the rule: what they mask is never kept."""
    ops = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(64, 50, generator=generator) * 3 / temperature
    k = None if top_k is None else torch.full((64,), top_k, dtype=torch.int32)
    p = None if top_p is None else torch.full((64,), top_p)
    processed = ops.apply_top_k_top_p(logits.clone(), k, p)
    draft = torch.where(
        torch.arange(64) % 2 == 0,
        processed.topk(2).indices[:, 1],
        torch.randint(50, (64,), generator=generator),
    )
    rows = [
        ([float(x) for x in processed[i].double()], int(draft[i]), 2, 0.1003, 0.0, [3]) for i in range(64)
    ]
    got = accept(rows)
    assert got == [oracle(*row) for row in rows]
    assert any(got)
    assert not any(kept and processed[i, draft[i]] == -math.inf for i, kept in enumerate(got))


def test_a_row_without_any_allowed_token_keeps_nothing() -> None:
    assert accept([([-math.inf] * 4, 1, 2, 0.0, 0.0, [])]) == [False]


def test_laser_rule() -> None:
    """top_k 2, min_prob 0.1, no guard: exactly the published rule, by a straightforward reading of it."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(400, 30)).astype(np.float32) * 2
    draft = rng.integers(0, 30, 400)
    draft[::2] = np.argsort(-logits[::2], axis=1)[:, 1]
    prob = np.exp(logits.astype(np.float64))
    prob /= prob.sum(axis=1, keepdims=True)
    paper = [x in np.argsort(-row)[:2] and p[x] > 0.1 for row, p, x in zip(logits, prob, draft, strict=True)]
    rows = [(logits[i].tolist(), int(draft[i]), 2, 0.1, 0.0, []) for i in range(400)]
    assert accept(rows) == paper
    assert any(paper)
    assert not all(paper)


def test_forced_rows_are_one_hot_and_the_others_untouched() -> None:
    logits = torch.randn(3, 8)
    before = logits.clone()
    force_tokens(logits, torch.tensor([False, True, False]), torch.tensor([1, 5, 2], dtype=torch.int32))
    assert torch.equal(logits[0], before[0])
    assert torch.equal(logits[2], before[2])
    assert logits[1].softmax(0).tolist() == [0.0] * 5 + [1.0, 0.0, 0.0]
