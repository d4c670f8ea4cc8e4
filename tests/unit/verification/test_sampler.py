"""RelaxedRejectionSampler against vLLM's own sampler, on the CPU and without an engine."""

import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
import torch
from vllm.platforms import current_platform

from vllm_dare.verification.rule import VerificationConfig

if not current_platform.is_cpu():
    pytest.skip("these are vLLM's CPU kernels", allow_module_level=True)

VOCAB = 24
STRICT = VerificationConfig()
LOOSE = {"preset": "paper", "guard_stop_tokens": True}
RELAXED = VerificationConfig(**LOOSE)
STOP = 23
LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    """What a CPU worker does before it samples; the patches are taken back afterwards."""
    from vllm.v1.sample import rejection_sampler

    from vllm_dare.engine import plugin

    names = ("rejection_sample", "generate_uniform_probs", "expand_batch_to_tokens")
    before = [getattr(rejection_sampler, name) for name in names]
    register_cpu_kernels()
    plugin.RELAXED_ACCEPTANCE.apply()
    plugin.RELAXED_RANDOMNESS.apply()
    plugin.CPU_EXPANSION.apply()
    yield
    for name, original in zip(names, before, strict=True):
        setattr(rejection_sampler, name, original)


def register_cpu_kernels() -> None:
    """Let vLLM look for its kernels in its own modules only: it stumbles over numba's."""
    from vllm.triton_utils import dispatcher

    if dispatcher._registry:
        return
    current_platform.import_kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "sys", SimpleNamespace(modules=VllmModules()))
        current_platform.register_triton_kernel_overrides()


class VllmModules(dict[str, Any]):
    """`sys.modules`, of which a walk over the values shows vLLM's alone."""

    def __missing__(self, name: str) -> Any:
        return sys.modules[name]

    def values(self) -> Any:
        return [module for name, module in sys.modules.items() if name.startswith("vllm.")]


class Batch:
    """A batch with drafts: for each request the target's logits, its drafts and how it samples.

    Args:
        rows: for each request (logits [drafts + 1, VOCAB], draft tokens, temperature).
        top_k: of the sampled requests.
        logprobs: how many to report; None for none.
    """

    def __init__(
        self,
        rows: Sequence[tuple[torch.Tensor, list[int], float]],
        top_k: int | None = None,
        logprobs: int | None = None,
        penalty: float = 0.0,
    ) -> None:
        self.rows, self.top_k, self.logprobs, self.penalty = rows, top_k, logprobs, penalty

    def run(self, sampler: Any) -> Any:
        """The sampler's output; the same random numbers every time."""
        return sampler(self.spec_metadata(), None, self.logits(), self.sampling_metadata())

    def logits(self) -> torch.Tensor:
        return torch.cat([logits for logits, _, _ in self.rows])

    def spec_metadata(self) -> Any:
        from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

        metadata = SpecDecodeMetadata.make_dummy([drafts for _, drafts, _ in self.rows], torch.device("cpu"))
        ends = metadata.cu_num_sampled_tokens.long()
        metadata.bonus_logits_indices = (ends - 1).int()
        everything = torch.arange(int(ends[-1]))
        metadata.logits_indices = everything.int()
        metadata.target_logits_indices = everything[~torch.isin(everything, ends - 1)].int()
        return metadata

    def sampling_metadata(self) -> Any:
        from vllm.v1.sample.logits_processor import LogitsProcessors
        from vllm.v1.sample.metadata import SamplingMetadata

        temperatures = [temperature for _, _, temperature in self.rows]
        size = len(self.rows)
        sampled = [row for row, temperature in enumerate(temperatures) if temperature > 0]
        return SamplingMetadata(
            temperature=torch.tensor(temperatures) if sampled else None,
            all_greedy=not sampled,
            all_random=len(sampled) == size,
            top_p=None,
            top_k=None if self.top_k is None else torch.full((size,), self.top_k, dtype=torch.int32),
            generators={row: torch.Generator().manual_seed(row + 1) for row in sampled},
            max_num_logprobs=self.logprobs,
            no_penalties=self.penalty == 0.0,
            prompt_token_ids=torch.full((size, 1), VOCAB - 1),
            frequency_penalties=torch.zeros(size),
            presence_penalties=torch.full((size,), self.penalty),
            repetition_penalties=torch.ones(size),
            output_token_ids=[[0] for _ in range(size)],
            spec_token_ids=[drafts for _, drafts, _ in self.rows],
            allowed_token_ids_mask=None,
            bad_words_token_ids={},
            logitsprocs=LogitsProcessors(),
        )


def native(mode: str = "raw_logprobs") -> Any:
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler

    return RejectionSampler(Sampler(logprobs_mode=mode))


def ours(*rules: VerificationConfig, mode: str = "raw_logprobs") -> Any:
    from vllm_dare.verification.request_rule import RequestRule
    from vllm_dare.verification.sampler import RelaxedRejectionSampler
    from vllm_dare.verification.token_guards import TokenGuards

    of_requests = [RequestRule(rule, (STOP,)) for rule in rules]
    guards = TokenGuards(VOCAB, list, lambda _: [])
    return RelaxedRejectionSampler(native(mode), lambda: of_requests, guards)


def tokens(output: Any) -> list[list[int]]:
    """The tokens of each request, without the padding after a rejection."""
    return [[token for token in row if token >= 0] for row in output.sampled_token_ids.tolist()]


def probabilities(*chosen: dict[int, float]) -> torch.Tensor:
    """Logits of distributions given by some tokens' probabilities; the rest share what is left."""
    rows = []
    for of_tokens in chosen:
        rest = (1 - sum(of_tokens.values())) / (VOCAB - len(of_tokens))
        rows.append([of_tokens.get(token, rest) for token in range(VOCAB)])
    return torch.tensor(rows).log()


def random_batch(kind: str, seed: int, **options: Any) -> Batch:
    """Eight requests with zero to five drafts, likely ones among them."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(8):
        size = int(torch.randint(0, 6, (1,), generator=random))
        logits = torch.randn(size + 1, VOCAB, generator=random) * 2
        order = logits[:size].argsort(dim=1, descending=True)
        drafts = [int(order[i, int(torch.randint(0, 3, (1,), generator=random)) // 2]) for i in range(size)]
        temperature = {"greedy": 0.0, "sampled": 0.8, "mixed": (0.0, 1.2)[number % 2]}[kind]
        rows.append((logits, drafts, temperature))
    return Batch(rows, **options)


# The best token is 5 (p = 0.5), the second 7 (0.3), the third 9 (0.1); at the end the best is 2.
CHOICE = probabilities({5: 0.5, 7: 0.3, 9: 0.1}, {2: 0.9})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["greedy", "sampled", "mixed"])
def test_strict_rules_give_vllms_output(kind: str, seed: int) -> None:
    batch = random_batch(kind, seed)
    assert tokens(batch.run(ours(*[STRICT] * 8))) == tokens(batch.run(native()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["greedy", "sampled", "mixed"])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"penalty": 0.7}], ids=str)
def test_strict_requests_beside_relaxed_ones_do_not_change(
    kind: str, seed: int, options: dict[str, Any]
) -> None:
    batch = random_batch(kind, seed, **options)
    mixed = tokens(batch.run(ours(*[STRICT, STRICT, RELAXED, RELAXED] * 2)))
    expected = tokens(batch.run(native()))
    strict = (0, 1, 4, 5)
    assert [mixed[i] for i in strict] == [expected[i] for i in strict]


def test_random_batches_relax_something() -> None:
    """The test above needs rows that relaxing changes."""
    batches = [random_batch("mixed", seed) for seed in range(5)]
    relaxed = [tokens(batch.run(ours(*[RELAXED] * 8))) for batch in batches]
    assert all(one != tokens(batch.run(native())) for one, batch in zip(relaxed, batches, strict=True))


@pytest.mark.parametrize(
    ("draft", "rule", "expected"),
    [
        (5, RELAXED, [5, 2]),
        (7, RELAXED, [7, 2]),
        (9, RELAXED, [5]),  # ranks third
        (9, VerificationConfig(**LOOSE | {"top_k": 3, "min_prob": 0.05}), [9, 2]),
        (7, VerificationConfig(**LOOSE, min_prob=0.35), [5]),
        (7, VerificationConfig(**LOOSE, min_ratio=0.7), [5]),
        (7, VerificationConfig(**LOOSE, min_ratio=0.5), [7, 2]),
        (7, VerificationConfig(**LOOSE, top_k=1), [5]),
        (7, STRICT, [5]),
    ],
    ids=str,
)
def test_a_greedy_request_keeps_what_its_rule_says(
    draft: int, rule: VerificationConfig, expected: list[int]
) -> None:
    assert tokens(Batch([(CHOICE, [draft], 0.0)]).run(ours(rule))) == [expected]


def test_a_sampled_request_always_keeps_what_its_rule_says() -> None:
    batch = Batch([(CHOICE, [7], 1.0)] * 64)
    assert {row[0] for row in tokens(batch.run(ours(*[RELAXED] * 64)))} == {7}
    assert {row[0] for row in tokens(batch.run(native()))} > {5, 7}


@pytest.mark.parametrize("draft", [9, 12])
def test_where_a_draft_is_not_kept_the_token_has_the_targets_distribution(draft: int) -> None:
    """What README says of the distribution: exactly p, whatever was drafted (9: p = 0.1; 12: hardly any)."""
    from scipy.stats import chisquare

    number = 20_000
    rule = VerificationConfig(**LOOSE | {"min_prob": 0.2})
    batch = Batch([(CHOICE, [draft], 1.0)] * number)
    first = torch.tensor([row[0] for row in tokens(batch.run(ours(*[rule] * number)))])
    counts = torch.bincount(first, minlength=VOCAB).numpy()
    assert (
        chisquare(
            counts, CHOICE[0].exp().numpy().astype(float) / CHOICE[0].exp().sum().item() * number
        ).pvalue
        > 1e-3
    )


def test_the_rule_sees_what_is_left_of_the_distribution_after_top_k() -> None:
    """A draft that the request's own top-k excludes is never kept."""
    rule = VerificationConfig(**LOOSE | {"top_k": 8, "min_prob": 0.0})
    batch = Batch([(CHOICE, [9], 1.0)] * 16, top_k=2)
    assert all(row[0] in {5, 7} for row in tokens(batch.run(ours(*[rule] * 16))))


def test_the_rule_sees_penalties() -> None:
    """Token 0 was written before; its penalty takes it from the first rank to below the minimum."""
    logits = probabilities({0: 0.5, 7: 0.45}, {2: 0.9})
    rule = RELAXED
    assert tokens(Batch([(logits, [0], 0.0)]).run(ours(rule))) == [[0, 2]]
    assert tokens(Batch([(logits, [0], 0.0)], penalty=1.9).run(ours(rule))) == [[0, 2]]
    assert tokens(Batch([(logits, [0], 0.0)], penalty=2.5).run(ours(rule))) == [[7]]


@pytest.mark.parametrize(("best", "draft"), [(STOP, 7), (7, STOP)])
def test_a_stop_token_is_verified_strictly(best: int, draft: int) -> None:
    batch = Batch([(probabilities({best: 0.5, draft: 0.4}, {2: 0.9}), [draft], 0.0)])
    unguarded = VerificationConfig(preset="paper")
    assert tokens(batch.run(ours(RELAXED))) == [[best]]
    assert tokens(batch.run(ours(unguarded))) == [[draft, 2]]


def test_a_chain_ends_at_the_first_draft_that_is_not_kept() -> None:
    logits = torch.cat([CHOICE[:1]] * 4 + [CHOICE[1:]])
    assert tokens(Batch([(logits, [7, 5, 9, 7], 0.0)]).run(ours(RELAXED))) == [[7, 5, 5]]


def test_requests_without_drafts_among_others() -> None:
    rows = [(CHOICE[:1], [], 0.0), (CHOICE, [7], 0.0), (CHOICE[1:], [], 0.0), (CHOICE, [7], 0.0)]
    output = Batch(rows).run(ours(RELAXED, RELAXED, RELAXED, STRICT))
    assert tokens(output) == [[5], [7, 2], [2], [5]]


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_without_any_draft(temperature: float, logprobs: int | None) -> None:
    """vLLM's own top-k fails on it; the result is that of its plain sampler."""
    batch = Batch([(CHOICE[:1], [], temperature)] * 4, top_k=3 if temperature else None, logprobs=logprobs)
    sampler = ours(*[RELAXED] * 4)
    got, expected = batch.run(sampler), sampler.sampler(batch.logits(), batch.sampling_metadata())
    assert got.sampled_token_ids.tolist() == expected.sampled_token_ids.tolist()
    if logprobs is not None:
        assert torch.equal(got.logprobs_tensors.logprobs, expected.logprobs_tensors.logprobs)


def test_a_batch_of_no_request_is_left_to_vllm() -> None:
    """Warm-up batches have rows, but the runner has no requests."""
    batch = random_batch("mixed", 3)
    assert tokens(batch.run(ours())) == tokens(batch.run(native()))


def test_nothing_stays_relaxed_after_a_step() -> None:
    batch = Batch([(CHOICE, [7], 0.0)])
    batch.run(ours(RELAXED))
    assert tokens(batch.run(native())) == [[5]]
    broken = SimpleNamespace(numel=lambda: 1)
    with pytest.raises(AttributeError):
        ours(RELAXED)(
            SimpleNamespace(draft_token_ids=broken, num_draft_tokens=[1]),
            None,
            batch.logits(),
            batch.sampling_metadata(),
        )
    assert tokens(batch.run(native())) == [[5]]


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("mode", LOGPROBS_MODES)
def test_log_probs_are_the_targets(mode: str, temperature: float) -> None:
    """Of the draft that was kept, its rank and neighbours too; not those of the one-hot row."""
    batch = Batch([(CHOICE, [7], temperature)] * 2, logprobs=3, penalty=0.2)
    output = batch.run(ours(RELAXED, STRICT, mode=mode))
    assert output.sampled_token_ids[0, 0] == 7
    reported = output.logprobs_tensors
    values = dict(
        zip(reported.logprob_token_ids[0].tolist()[1:], reported.logprobs[0].tolist()[1:], strict=True)
    )
    target = CHOICE[0].clone()
    if mode.startswith("processed"):
        target[0] -= 0.2
        target /= temperature or 1.0
    if mode.endswith("logprobs"):
        target = target.log_softmax(dim=0)
    assert values == pytest.approx({token: target[token].item() for token in (5, 7, 9)}, abs=1e-5)
    assert reported.logprobs[0, 0] == pytest.approx(target[7].item(), abs=1e-5)
    assert reported.selected_token_ranks[0] == 2


@pytest.mark.parametrize("mode", LOGPROBS_MODES)
@pytest.mark.parametrize("kind", ["greedy", "sampled", "mixed"])
def test_strict_log_probs_are_vllms(kind: str, mode: str) -> None:
    """With a relaxed request in the batch that keeps nothing more, so that our code runs."""
    nothing_more = VerificationConfig(preset="paper", min_prob=0.999)
    batch = random_batch(kind, 1, logprobs=2)
    got = batch.run(ours(*[STRICT] * 7, nothing_more, mode=mode))
    expected = batch.run(native(mode))
    assert tokens(got) == tokens(expected)
    for ours_, theirs in zip(got.logprobs_tensors, expected.logprobs_tensors, strict=True):
        assert ours_ is theirs is None or torch.equal(ours_, theirs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_meters_count_what_happened(temperature: float) -> None:
    """5 (exact), 7 (relaxed, log 5/3 given up), 7 again beyond the budget: the chain ends there."""
    logits = torch.cat([CHOICE[:1]] * 3 + [CHOICE[1:]])
    rule = VerificationConfig(**LOOSE, max_relaxed=1)
    sampler = ours(rule, rule)
    output = Batch([(logits, [5, 7, 7], temperature)] * 2).run(sampler)
    sampler.settle()
    meters = [of_request.meters for of_request in sampler.rules_of_batch()]
    for got, row in zip(meters, tokens(output), strict=True):
        assert got.exact + got.relaxed >= len(row) - 1
        assert got.relaxed <= 1
        if temperature == 0:
            assert row == [5, 7, 5]
            assert (got.exact, got.relaxed, got.budget_stops) == (1, 1, 1)
            assert got.given_up == pytest.approx(np.log(5 / 3), abs=1e-5)
            assert got.as_dict()["given_up_per_token"] == got.given_up
    assert sampler.meters.exact == sum(got.exact for got in meters)
    assert sampler.meters.given_up == pytest.approx(sum(got.given_up for got in meters))


def test_a_budget_lasts_over_steps() -> None:
    rule = VerificationConfig(**LOOSE, max_relaxed=1)
    sampler = ours(rule)
    batch = Batch([(CHOICE, [7], 0.0)])
    assert [tokens(batch.run(sampler)) for _ in range(3)] == [[[7, 2]], [[5]], [[5]]]


@pytest.mark.parametrize("seed", range(5))
def test_what_counts_as_relaxed_is_what_vllm_would_have_rejected(seed: int) -> None:
    """With the same random numbers: until the first relaxed token, the output is vLLM's own."""
    batch = random_batch("sampled", seed)
    sampler = ours(*[RELAXED] * 8)
    got, expected = tokens(batch.run(sampler)), tokens(batch.run(native()))
    sampler.settle()
    for (_, drafts, _), rule, row, strict in zip(
        batch.rows, sampler.rules_of_batch(), got, expected, strict=True
    ):
        kept = rule.meters.exact + rule.meters.relaxed
        assert row[:kept] == drafts[:kept]
        assert len(row) == kept + 1
        if rule.meters.relaxed == 0:
            assert row == strict
        else:
            assert len(strict) <= len(row)
