"""The CUDA kernels against the CPU's rule: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_dare.pool.pivots import hash_contexts  # noqa: E402
from vllm_dare.verification import policy  # noqa: E402
from vllm_dare.verification.policy import BatchRules  # noqa: E402
from vllm_dare.verification.rule import PRESETS, VerificationConfig  # noqa: E402

VOCAB = 200
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RULES = [
    *(VerificationConfig(preset=name) for name in PRESETS),
    VerificationConfig(),
    VerificationConfig(preset="fast", top_k=None, min_prob=0.0, max_relaxed=2, max_relaxed_in_row=1),
    VerificationConfig(preset="fast", min_prob=0.0, max_relaxed_per_100=20, min_entropy=0.2),
    VerificationConfig(preset="fast", min_prob=0.0, protect=("digits", "quoted"), wording_only=True),
    VerificationConfig(preset="paper", window=1),
]


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs the interpreter")


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="runs on the GPU, or here")
def test_in_the_interpreter() -> None:
    """Triton must be imported for the interpreter, so the tests below run in a process of their own."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "6 passed" in result.stdout


def random_batch(seed: int, sampled: str) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 9, len(RULES))
    tokens = max(1, int(sizes.sum()))
    if not sizes.sum():
        sizes[0] = 1
    logits = (np.round(random.normal(size=(tokens, VOCAB)) * 4) / 2).astype(np.float32)  # with ties
    logits[random.random((tokens, VOCAB)) < 0.2] = -np.inf
    order = np.argsort(-logits, axis=1, kind="stable")
    drafts = order[np.arange(tokens), np.minimum(random.geometric(0.5, tokens) - 1, 20)]
    drafts[random.random(tokens) < 0.03] = -1
    uniform = None if sampled == "greedy" else torch.from_numpy(random.random(tokens) * 0.6)
    greedy = None if sampled == "greedy" else torch.from_numpy(random.random(len(RULES)) < 0.5)
    if sampled == "sampled":
        greedy = torch.zeros(len(RULES), dtype=torch.bool)
    batch = BatchRules(
        rules=np.stack([policy.rule_row(rule) for rule in RULES]),
        guard_ends=np.cumsum(random.integers(0, 3, len(RULES))),
        guard_ids=np.sort(random.integers(0, VOCAB, 2 * len(RULES))),
        kinds=random.choice([0, 0, 0, 1, 2, 12, 16], VOCAB).astype(np.uint8),
        progress=np.stack([random.integers(0, 4, len(RULES)), random.integers(0, 99, len(RULES)),
                           random.integers(0, 2, len(RULES))], axis=1),
        recent=np.full((len(RULES), 3), -1),
        pivots=np.zeros(0, np.uint64),
    )  # fmt: skip
    lists = [some.tolist() for some in np.split(drafts, np.cumsum(sizes)[:-1])]
    contexts = [[-1, -1, -1, *some][i : i + 3] for some in lists for i in range(len(some))]
    pivots = np.unique(hash_contexts(np.array(contexts)[random.random(len(contexts)) < 0.5]))
    batch = replace(batch, pivots=pivots)
    for first, end in zip([0, *batch.guard_ends[:-1]], batch.guard_ends, strict=True):
        batch.guard_ids[first:end].sort()
    ends = torch.from_numpy(np.cumsum(sizes).astype(np.int32))
    return torch.from_numpy(logits), torch.from_numpy(drafts).int(), ends, uniform, greedy, batch


@here
@pytest.mark.parametrize("sampled", ["greedy", "sampled", "mixed"])
@pytest.mark.parametrize("block", [64, 256])
def test_the_kernels_decide_as_the_cpu_does(
    sampled: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_dare.verification import cuda

    monkeypatch.setattr(cuda, "_BLOCK", block)
    relaxed = 0
    for seed in range(2 if DEVICE == "cpu" else 100):
        *tensors, batch = random_batch(seed, sampled)
        expected = policy.verify(*tensors, batch)
        got = cuda.verify(*(None if t is None else t.to(DEVICE) for t in tensors), batch)
        assert torch.equal(got.relaxed.cpu(), expected.relaxed)
        assert torch.equal(got.logit.cpu(), expected.logit)
        assert torch.equal(got.tops.cpu(), expected.tops)
        torch.testing.assert_close(got.report.cpu(), expected.report, atol=1e-5, rtol=0)
        relaxed += int(expected.relaxed.sum())
    assert relaxed > 2
