"""The acceptance rule against a plain-Python oracle, and what forcing does to vLLM's decisions."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from vllm_dare.pool.pivots import hash_contexts  # noqa: E402
from vllm_dare.verification.policy import (  # noqa: E402
    DIGIT,
    JSON,
    LINE_END,
    QUOTE,
    TURN,
    BatchRules,
    force_tokens,
    restore_tokens,
    rule_row,
    verify,
)
from vllm_dare.verification.rule import PRESETS, VerificationConfig  # noqa: E402

VOCAB = 7
# Token 0 is plain; the others are, each in its way, something that a rule may guard.
KINDS = [0, 0, DIGIT, JSON, QUOTE | TURN, LINE_END, QUOTE]


@dataclass
class Request:
    rule: VerificationConfig
    logits: list[list[float]]
    drafts: list[int]
    uniform: list[float] | None = None  # None: greedy
    guards: list[int] = field(default_factory=list)
    used: int = 0
    written: int = 0
    quoted: bool = False
    recent: tuple[int, ...] = (-1, -1, -1)
    pivots: frozenset[tuple[int, ...]] = frozenset()


def oracle(request: Request) -> tuple[list[int], int, int, float, bool]:
    """(drafts relaxed, exact, relaxed, nats given up, stopped by the budget), by the rule's own words."""
    rule = request.rule

    def probs(i: int) -> list[float]:
        top = max(request.logits[i])
        weights = [math.exp(logit - top) for logit in request.logits[i]]
        return [weight / sum(weights) for weight in weights]

    def best(i: int) -> int:
        return max(range(VOCAB), key=lambda token: (request.logits[i][token], -token))

    def exact(i: int) -> bool:
        x = request.drafts[i]
        if x < 0:
            return False
        return x == best(i) if request.uniform is None else probs(i)[x] >= request.uniform[i]

    def allowed(i: int, quoted: bool) -> bool:
        x, m, p = request.drafts[i], best(i), probs(i)
        order = sorted(range(VOCAB), key=lambda token: (-request.logits[i][token], token))
        entropy = -sum(p[t] * math.log(p[t]) for t in order[:3] if p[t] > 0)
        following = range(i + 1, i + 1 + rule.window)
        kinds = {"digits": DIGIT, "json": JSON, "quoted": QUOTE}
        guarded = sum(kinds[name] for name in rule.protect)
        before = (*request.recent, *request.drafts[:i])[-3:]
        return (
            rule.mode == "relaxed"
            and p[x] > 0
            and (rule.top_k is None or order.index(x) < rule.top_k)
            and (rule.min_prob == 0 or p[x] > rule.min_prob)
            and p[x] >= rule.min_ratio * p[m]
            and entropy >= rule.min_entropy
            and all(j < len(request.drafts) and exact(j) for j in following)
            and not {x, m} & set(request.guards)
            and not (KINDS[x] | KINDS[m]) & guarded
            and not ("quoted" in rule.protect and quoted)
            and not (rule.wording_only and before in request.pivots)
        )

    kept: list[int] = []
    exacts, given_up, in_row, quoted = 0, 0.0, 0, request.quoted
    for i, x in enumerate(request.drafts):
        if x < 0:
            break
        if exact(i):
            exacts += 1
            in_row = 0
        elif not allowed(i, quoted):
            break
        else:
            used, length = request.used + len(kept) + 1, request.written + i + 1
            if (
                (rule.max_relaxed is not None and used > rule.max_relaxed)
                or (rule.max_relaxed_in_row is not None and in_row + 1 > rule.max_relaxed_in_row)
                or (rule.max_relaxed_per_100 is not None and used > rule.max_relaxed_per_100 * length / 100)
            ):
                return kept, exacts, len(kept), given_up, True
            kept.append(i)
            in_row += 1
            given_up += request.logits[i][best(i)] - request.logits[i][x]
        if KINDS[x] & LINE_END:
            quoted = False
        elif KINDS[x] & TURN:
            quoted = not quoted
    return kept, exacts, len(kept), given_up, False


def run(requests: list[Request]) -> Any:
    """`verify` of a batch, its tensors and where each request's drafts begin."""
    logits = torch.tensor([row for request in requests for row in request.logits]).reshape(-1, VOCAB)
    drafts = torch.tensor([x for request in requests for x in request.drafts], dtype=torch.int32)
    ends = np.cumsum([len(request.drafts) for request in requests])
    pivots = [pivot for request in requests for pivot in request.pivots]
    sampled = any(request.uniform is not None for request in requests)
    uniform = [
        number
        for request in requests
        for number in (request.uniform if request.uniform is not None else [0.0] * len(request.drafts))
    ]
    batch = BatchRules(
        rules=np.stack([rule_row(request.rule) for request in requests]),
        guard_ends=np.cumsum([len(request.guards) for request in requests]),
        guard_ids=np.array([t for request in requests for t in sorted(request.guards)], dtype=np.int64),
        kinds=np.array(KINDS, dtype=np.uint8),
        progress=np.array([[r.used, r.written, r.quoted] for r in requests], dtype=np.int64),
        recent=np.array([r.recent for r in requests], dtype=np.int64),
        pivots=np.unique(hash_contexts(np.array(pivots, dtype=np.int64).reshape(-1, 3))),
    )
    verdict = verify(
        logits,
        drafts,
        torch.tensor(ends, dtype=torch.int32),
        torch.tensor(uniform, dtype=torch.float64) if sampled else None,
        torch.tensor([request.uniform is None for request in requests]) if sampled else None,
        batch,
    )
    return verdict, logits, drafts, [0, *ends[:-1].tolist()]


def check(requests: list[Request]) -> int:
    """Compare a batch with the oracle; returns how many tokens were relaxed."""
    verdict, _, _, begins = run(requests)
    relaxed = verdict.relaxed.nonzero().squeeze(1).tolist()
    for request, begin, report in zip(requests, begins, verdict.report.tolist(), strict=True):
        kept, exact, number, given_up, stopped = oracle(request)
        assert [row - begin for row in relaxed if begin <= row < begin + len(request.drafts)] == kept
        assert report[:2] == [exact, number]
        assert report[2] == pytest.approx(given_up, abs=1e-4)
        assert bool(report[3]) == stopped
    return len(relaxed)


# Multiples of a half make ties frequent; -inf is a masked token. Bounds that no reachable value hits exactly,
# so that float32 and float64 agree.
logit = st.one_of(st.integers(-4, 4).map(lambda x: x / 2), st.just(-math.inf))
row = st.lists(logit, min_size=VOCAB, max_size=VOCAB).filter(lambda row: max(row) > -math.inf)
rule = st.builds(
    VerificationConfig,
    mode=st.sampled_from(["relaxed", "relaxed", "relaxed", "strict"]),
    top_k=st.sampled_from([None, None, 1, 2, 3]),
    min_prob=st.sampled_from([0.0, 0.0, 0.0501, 0.1003, 0.3007]),
    min_ratio=st.sampled_from([0.0, 0.0, 0.2503, 0.7001, 0.9999]),
    min_entropy=st.sampled_from([0.0, 0.0, 0.0, 0.3001, 0.9003]),
    window=st.sampled_from([0, 0, 0, 0, 1, 2]),
    max_relaxed=st.sampled_from([None, None, None, 0, 1, 3]),
    max_relaxed_per_100=st.sampled_from([None, None, None, 0, 5, 30, 100]),
    max_relaxed_in_row=st.sampled_from([None, None, None, 0, 1, 2]),
    protect=st.sampled_from([(), (), (), ("digits",), ("json", "quoted"), ("quoted",)]),
    wording_only=st.sampled_from([False, False, True]),
)


# The same for all requests of a batch, as they share a pool.
PIVOTS = frozenset({(-1, -1, -1), (-1, -1, 0), (0, 0, 0), (0, 1, 0), (1, 0, 0), (2, 0, 1)})


@st.composite
def request_(draw: Any) -> Request:
    size = draw(st.integers(0, 6))
    sampled = draw(st.booleans())
    return Request(
        rule=draw(rule),
        logits=draw(st.lists(row, min_size=size, max_size=size)),
        drafts=draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, -1]), min_size=size, max_size=size)),
        uniform=draw(st.lists(st.floats(0.001, 0.999), min_size=size, max_size=size)) if sampled else None,
        guards=draw(st.lists(st.integers(0, VOCAB - 1), max_size=2, unique=True)),
        used=draw(st.integers(0, 4)),
        written=draw(st.integers(0, 60)),
        quoted=draw(st.booleans()),
        recent=draw(st.sampled_from([(-1, -1, -1), (-1, -1, 0), (1, 0, 0)])),
        pivots=PIVOTS,
    )


@settings(max_examples=300)
@given(st.lists(request_(), min_size=1, max_size=4))
@example(
    [Request(VerificationConfig(mode="relaxed", preset="paper", top_k=1), [[0.0, 0.0] + [-9.0] * 5], [1])]
)
def test_decisions_equal_plain_python(requests: list[Request]) -> None:
    if any(request.drafts for request in requests):
        check(requests)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("sampled", [False, True])
def test_presets_equal_plain_python_and_relax_something(preset: str, sampled: bool) -> None:
    random = np.random.default_rng(5)
    requests = []
    for _ in range(200):
        logits = (random.normal(size=(9, VOCAB)) * 1.5).astype(np.float32)
        order = np.argsort(-logits, axis=1)
        drafts = [int(order[i, min(random.geometric(0.7) - 1, VOCAB - 1)]) for i in range(9)]
        uniform = (random.random(9) * 0.4).tolist() if sampled else None
        requests.append(
            Request(VerificationConfig(preset=preset), logits.tolist(), drafts, uniform, guards=[6])
        )
    assert check(requests) > 2


def test_the_rule_of_laser_exactly() -> None:
    """`paper`: rank at most 2 and p > 0.1 on random logits, by a straightforward reading of the paper; the
    chain goes on as long as that holds."""
    random = np.random.default_rng(3)
    rule, kept, ended = VerificationConfig(preset="paper"), 0, 0
    for _ in range(100):
        logits = (random.normal(size=(8, 300)) * 4).astype(np.float32)
        order = np.argsort(-logits, axis=1)
        drafts = [int(order[i, random.choice([0, 1, 1, 1, 2])]) for i in range(8)]
        prob = np.exp(logits.astype(np.float64))
        prob /= prob.sum(axis=1, keepdims=True)
        accepted = [
            (x in order[i, :2] and prob[i, x] > 0.1) or x == order[i, 0] for i, x in enumerate(drafts)
        ]
        length = accepted.index(False) if False in accepted else 8
        batch = BatchRules(
            rules=rule_row(rule)[None],
            guard_ends=np.zeros(1, np.int64),
            guard_ids=np.zeros(0, np.int64),
            kinds=np.zeros(0, np.uint8),
            progress=np.zeros((1, 3), np.int64),
            recent=np.zeros((1, 3), np.int64),
            pivots=np.zeros(0, np.uint64),
        )
        verdict = verify(torch.from_numpy(logits), torch.tensor(drafts), torch.tensor([8]), None, None, batch)
        assert verdict.report[0, :2].sum() == length
        relaxed = verdict.relaxed.nonzero().squeeze(1).tolist()
        assert relaxed == [i for i in range(length) if drafts[i] != order[i, 0]]
        kept, ended = kept + len(relaxed), ended + (length < 8)
    assert kept > 50
    assert ended > 50


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.8), (20, 0.9)])
def test_what_the_requests_own_sampling_masks_is_never_kept(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Temperature, top-k and top-p are applied by vLLM before the rule."""
    ops = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(64, VOCAB, generator=generator) * 3 / temperature
    k = None if top_k is None else torch.full((64,), min(top_k, VOCAB), dtype=torch.int32)
    p = None if top_p is None else torch.full((64,), top_p)
    processed = ops.apply_top_k_top_p(logits.clone(), k, p)
    drafts = torch.randint(VOCAB, (64,), generator=generator).tolist()
    anything = VerificationConfig(mode="relaxed", top_k=None, min_prob=0.0, min_ratio=0.0)
    requests = [
        Request(anything, [processed[i].tolist()], [drafts[i]], [1 - 1e-6 * (i + 1)]) for i in range(64)
    ]
    check(requests)
    relaxed = run(requests)[0].relaxed.nonzero().squeeze(1).tolist()
    assert relaxed
    assert all(processed[i, drafts[i]] > -math.inf for i in relaxed)


def test_a_row_without_any_allowed_token_keeps_nothing() -> None:
    anything = VerificationConfig(mode="relaxed", top_k=None, min_prob=0.0, min_ratio=0.0)
    verdict, *_ = run([Request(anything, [[-math.inf] * VOCAB], [1])])
    assert not verdict.relaxed.any()


def test_forced_tokens_have_all_the_probability_until_they_are_restored() -> None:
    anything = VerificationConfig(mode="relaxed", top_k=None, min_prob=0.0, min_ratio=0.0)
    rows = [[0.0, 3.0, 1.0, -2.0, 0.5, 90.0, -math.inf]] * 3
    verdict, logits, drafts, _ = run([Request(anything, rows, [5, 2, 0])])
    assert verdict.relaxed.tolist() == [False, True, True]
    before = logits.clone()
    force_tokens(logits, drafts, verdict)
    assert logits.argmax(dim=1).tolist() == [5, 2, 0]
    assert logits.softmax(dim=1)[1:].tolist() == [[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]
    assert torch.equal(logits[0], before[0])
    restore_tokens(logits, drafts, verdict)
    assert torch.equal(logits, before)
