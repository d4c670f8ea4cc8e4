"""vLLM's rejection sampler with relaxed acceptance for the requests that ask for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_dare.pool.pivots import BEGIN, CONTEXT
from vllm_dare.verification.meters import Meters
from vllm_dare.verification.policy import (
    NUM_PROGRESS_COLUMNS,
    WORDING_ONLY,
    BatchRules,
    Verdict,
    force_tokens,
    restore_tokens,
    verify,
)
from vllm_dare.verification.request_rule import RequestRule
from vllm_dare.verification.token_guards import TokenGuards


class RelaxedRejectionSampler(RejectionSampler):  # type: ignore[misc]
    """`RejectionSampler` that first forces the draft tokens which a request's relaxed rule keeps.

    The rule sees vLLM's processed logits, so masks, penalties, temperature, top-k and top-p hold. Reported
    log-probs stay the target's: the logits are put back before they are computed. A batch without a relaxed
    request runs vLLM's code alone.

    Args:
        native: the runner's own rejection sampler, whose state (modes, tables) is taken over.
        rules_of_batch: returns the rule of every request of the running batch, in batch order.
        guards: what is known of the vocabulary and the pool's text.

    Attributes:
        meters: what relaxing did since the start, over all requests.
    """

    def __init__(
        self,
        native: RejectionSampler,
        rules_of_batch: Callable[[], Sequence[RequestRule]],
        guards: TokenGuards,
    ) -> None:
        torch.nn.Module.__init__(self)
        self.__dict__.update(native.__dict__)
        self.rules_of_batch = rules_of_batch
        self.meters = Meters()
        self._guards = guards
        self._batch: _RulesOfBatch | None = None
        self._reports: list[tuple[Sequence[RequestRule], torch.Tensor]] = []

    def forward(
        self,
        metadata: SpecDecodeMetadata,
        draft_probs: torch.Tensor | None,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
    ) -> SamplerOutput:
        """See `RejectionSampler.forward`; arguments and result are the same."""
        filters = sampling_metadata.top_k is not None or sampling_metadata.top_p is not None
        if filters and metadata.draft_token_ids.numel() == 0:
            # vLLM comes here without a single draft too, and then its top-k fails on an empty tensor.
            return self.sampler(logits[metadata.bonus_logits_indices], sampling_metadata)
        rules = self.rules_of_batch()
        # Dummy batches of vLLM's warm-up belong to no request.
        if len(rules) != len(metadata.num_draft_tokens) or not any(rule.relaxes for rule in rules):
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        self.settle()
        if self._batch is None or self._batch.requests != rules:
            self._batch = _RulesOfBatch(rules, self._guards)
        relaxation = Relaxation(self._batch.now())
        token = current_relaxation.set(relaxation)
        try:
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        finally:
            current_relaxation.reset(token)
            if relaxation.report is not None:
                self._reports.append((rules, relaxation.report))

    def settle(self) -> None:
        """Count what was decided since the last call; by now no GPU need be waited for."""
        for rules, report in self._reports:
            for rule, row in zip(rules, report.tolist(), strict=True):
                if rule.relaxes:
                    rule.meters.add(row)
                    self.meters.add(row)
        self._reports.clear()


class Relaxation:
    """One step's relaxing, around vLLM's `rejection_sample`.

    Args:
        batch: the rules of the batch's requests.

    Attributes:
        report: see `Verdict.report`; None before it is decided.
    """

    def __init__(self, batch: BatchRules) -> None:
        self.report: torch.Tensor | None = None
        self._batch = batch
        self._uniform: torch.Tensor | None = None

    @contextmanager
    def around(self, arguments: Mapping[str, Any], draw: Callable[..., torch.Tensor]) -> Iterator[None]:
        """Force what the rules keep while `rejection_sample` runs with these arguments.

        Args:
            arguments: of `rejection_sample`, by name.
            draw: vLLM's `generate_uniform_probs`. It is called here, so that it is known what vLLM's own
                rule accepts, and what it drew is handed out when `rejection_sample` asks for it.
        """
        logits, draft = arguments["target_logits"], arguments["draft_token_ids"]
        sampling = arguments["sampling_metadata"]
        greedy = None
        if not sampling.all_greedy:
            greedy = sampling.temperature == 0
            self._uniform = draw(
                len(draft), arguments["num_draft_tokens"], sampling.generators, logits.device
            )
        verdict = _verify_on(logits.device)(
            logits, draft, arguments["cu_num_draft_tokens"], self._uniform, greedy, self._batch
        )
        self.report = verdict.report
        if verdict.keeps_nothing:
            yield
            return
        force_tokens(logits, draft, verdict)
        try:
            yield
        finally:
            restore_tokens(logits, draft, verdict)

    def take_uniform(self) -> torch.Tensor | None:
        """The random numbers of this step if they are drawn already; they are handed out once."""
        uniform, self._uniform = self._uniform, None
        return uniform


class _RulesOfBatch:
    """The rules of a batch's requests as arrays; most steps have the same requests as the step before."""

    def __init__(self, rules: Sequence[RequestRule], guards: TokenGuards) -> None:
        self.requests = list(rules)
        self._guards = guards
        ids = [rule.guard_ids for rule in rules]
        self._rules = np.stack([rule.row for rule in rules])
        self._guard_ends, self._guard_ids = np.cumsum([len(some) for some in ids]), np.concatenate(ids)

    def now(self) -> BatchRules:
        """The rules, and where the requests stand."""
        progress = np.zeros((len(self.requests), NUM_PROGRESS_COLUMNS), np.int64)
        recent = np.full((len(self.requests), CONTEXT), BEGIN, np.int64)
        for number, rule in enumerate(self.requests):
            if rule.relaxes:
                progress[number] = rule.meters.relaxed, rule.written(), rule.quoted(self._guards.kinds)
                if rule.row[WORDING_ONLY]:
                    recent[number] = rule.recent()
        return BatchRules(
            rules=self._rules,
            guard_ends=self._guard_ends,
            guard_ids=self._guard_ids,
            kinds=self._guards.kinds,
            progress=progress,
            recent=recent,
            pivots=self._guards.pivots,
        )


def _verify_on(device: torch.device) -> Callable[..., Verdict]:
    if device.type == "cpu":
        return verify
    from vllm_dare.verification import cuda  # Triton is not to be had on CPU machines

    return cuda.verify


# Set only while RelaxedRejectionSampler.forward runs, read by the patched `rejection_sample`.
current_relaxation: ContextVar[Relaxation | None] = ContextVar("current_relaxation", default=None)
