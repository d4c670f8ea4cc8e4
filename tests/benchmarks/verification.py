"""What relaxed verification costs beside vLLM's own rejection step.

    .venv/bin/python -m tests.benchmarks.verification
    .venv/bin/python -m tests.benchmarks.verification --vocab 32000 --sequences 1,16 --presets careful

Both samplers get the same batches: random logits with four likely tokens a row, and drafts of 16 that are
mostly the likeliest, as a good pool's are. They take turns, so that a slow moment slows both; printed are
medians over the rounds, and the median of the rounds' ratios. Batches of more than --memory GiB are left out
and named.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vllm_dare.verification.request_rule import RequestRule
from vllm_dare.verification.rule import VerificationConfig
from vllm_dare.verification.token_guards import TokenGuards

DRAFTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", default="32000,152000")
    parser.add_argument("--sequences", default="1,4,16,64,256")
    parser.add_argument("--presets", default="paper,careful")
    parser.add_argument("--seconds", type=float, default=3.0, help="per line")
    parser.add_argument("--memory", type=float, default=6.0, help="GiB that a batch may take")
    options = parser.parse_args()
    samplers = _samplers()
    table = Table("vocabulary", "sequences", "sampling", "rule", "vLLM ms", "DARE ms", "overhead")
    for vocab in map(int, options.vocab.split(",")):
        for sequences in map(int, options.sequences.split(",")):
            gib = vocab * sequences * (DRAFTS + 1) * 4 * 4 / 2**30
            if gib > options.memory:
                table.add_row(f"{vocab}", f"{sequences}", "", "", "", "", f"left out ({gib:.0f} GiB)")
                continue
            for temperature in (0.0, 0.7):
                batch = _batch(vocab, sequences, temperature)
                for preset in options.presets.split(","):
                    native, ours, ratio = _compare(samplers, batch, preset, options.seconds)
                    name = "greedy" if temperature == 0 else f"t {temperature}"
                    table.add_row(
                        f"{vocab}", f"{sequences}", name, preset,
                        f"{native * 1e3:.2f}", f"{ours * 1e3:.2f}", f"{ratio - 1:+.1%}",
                    )  # fmt: skip
    Console(width=100).print(table)


def _samplers() -> SimpleNamespace:
    from vllm.platforms import current_platform
    from vllm.triton_utils import dispatcher
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler

    from tests.unit.verification.test_sampler import register_cpu_kernels
    from vllm_dare.engine import plugin
    from vllm_dare.verification.sampler import RelaxedRejectionSampler

    assert dispatcher is not None
    if current_platform.is_cpu():
        register_cpu_kernels()
        plugin.CPU_EXPANSION.apply()
    plugin.RELAXED_ACCEPTANCE.apply()
    plugin.RELAXED_RANDOMNESS.apply()

    def relaxed(native: Any, rules: Sequence[RequestRule], vocab: int) -> Any:
        return RelaxedRejectionSampler(native, lambda: rules, TokenGuards(vocab, list, lambda _: []))

    return SimpleNamespace(native=lambda: RejectionSampler(Sampler()), relaxed=relaxed)


def _batch(vocab: int, sequences: int, temperature: float) -> SimpleNamespace:
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random = np.random.default_rng(0)
    rows = sequences * (DRAFTS + 1)
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))
    likely = torch.from_numpy(random.integers(0, vocab, (rows, 4)))
    logits.scatter_(1, likely, torch.tensor([[14.0, 12.5, 11.0, 10.0]]).expand(rows, 4).contiguous())
    choice = np.minimum(random.geometric(0.85, rows) - 1, 3)
    chosen = likely[torch.arange(rows), torch.from_numpy(choice)].reshape(sequences, DRAFTS + 1)
    drafts = chosen[:, :DRAFTS].tolist()
    metadata = SpecDecodeMetadata.make_dummy(drafts, device)
    ends = metadata.cu_num_sampled_tokens.long()
    everything = torch.arange(rows, device=device)
    metadata.bonus_logits_indices = (ends - 1).int()
    metadata.target_logits_indices = everything[~torch.isin(everything, ends - 1)].int()
    greedy = temperature == 0
    sampling = SamplingMetadata(
        temperature=None if greedy else torch.full((sequences,), temperature, device=device),
        all_greedy=greedy,
        all_random=not greedy,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=torch.zeros(sequences),
        presence_penalties=torch.zeros(sequences),
        repetition_penalties=torch.ones(sequences),
        output_token_ids=[[] for _ in range(sequences)],
        spec_token_ids=drafts,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
    return SimpleNamespace(
        metadata=metadata, logits=logits.to(device), sampling=sampling, vocab=vocab, sequences=sequences
    )


def _compare(
    samplers: SimpleNamespace, batch: SimpleNamespace, preset: str, seconds: float
) -> tuple[float, float, float]:
    """Median seconds of vLLM's sampler and of ours, and the median ratio of a round."""
    rules = [RequestRule(VerificationConfig(preset=preset), (2,)) for _ in range(batch.sequences)]
    arms = (samplers.native(), samplers.relaxed(samplers.native(), rules, batch.vocab))
    times: tuple[list[float], list[float]] = ([], [])
    for arm in arms:
        _run(arm, batch)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for arm, spent in zip(arms, times, strict=True):
            spent.append(_timed(lambda arm=arm: _run(arm, batch)))
    ratios = [ours / native for native, ours in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)


def _run(sampler: Any, batch: SimpleNamespace) -> None:
    sampler(batch.metadata, None, batch.logits, batch.sampling)
    if batch.logits.is_cuda:
        torch.cuda.synchronize()


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    with torch.inference_mode():
        main()
