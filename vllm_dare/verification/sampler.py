"""vLLM's rejection sampler with relaxed acceptance for the requests that ask for it."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_dare.config import VerificationConfig
from vllm_dare.verification.policy import force_tokens, relaxed_acceptance


@dataclass(frozen=True)
class RequestRule:
    """One request's acceptance rule and the tokens that end it."""

    verification: VerificationConfig
    stop_token_ids: tuple[int, ...]

    @property
    def relaxes(self) -> bool:
        """Whether this request may keep a token that strict verification would not."""
        return self.verification.mode == "relaxed" and self.verification.top_k > 1


# Receives (target_logits, draft_token_ids) and returns the logits to verify with; set only while
# RelaxedRejectionSampler.forward runs, read by the patched `rejection_sample`.
Relaxation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
current_relaxation: ContextVar[Relaxation | None] = ContextVar("current_relaxation", default=None)


class RelaxedRejectionSampler(RejectionSampler):  # type: ignore[misc]
    """`RejectionSampler` that first forces the draft tokens which a request's relaxed rule keeps.

    The rule sees vLLM's processed logits, so masks, penalties, temperature, top-k and top-p hold. Reported
    log-probs stay the target's: they are computed from logits that are not touched. A batch without a
    relaxed request runs vLLM's code alone.

    Args:
        native: the runner's own rejection sampler, whose state (modes, tables) is taken over.
        rules_of_batch: returns the rule of every request of the running batch, in batch order.
    """

    def __init__(self, native: RejectionSampler, rules_of_batch: Callable[[], Sequence[RequestRule]]) -> None:
        torch.nn.Module.__init__(self)
        self.__dict__.update(native.__dict__)
        self.rules_of_batch = rules_of_batch

    def forward(
        self,
        metadata: SpecDecodeMetadata,
        draft_probs: torch.Tensor | None,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
    ) -> SamplerOutput:
        """See `RejectionSampler.forward`; arguments and result are the same."""
        if metadata.draft_token_ids.numel() == 0:
            # vLLM comes here without a single draft too, and then its top-k fails on an empty tensor.
            return self.sampler(logits[metadata.bonus_logits_indices], sampling_metadata)
        rules = self.rules_of_batch()
        # Dummy batches of vLLM's warm-up belong to no request.
        if len(rules) != len(metadata.num_draft_tokens) or not any(rule.relaxes for rule in rules):
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        reports_logits = self.is_processed_logprobs_mode and sampling_metadata.max_num_logprobs is not None

        def relax(target_logits: torch.Tensor, draft_token_ids: torch.Tensor) -> torch.Tensor:
            bounds = _rule_tensors(rules, metadata.num_draft_tokens, target_logits.device)
            kept = relaxed_acceptance(target_logits, draft_token_ids, **bounds)
            if reports_logits:
                target_logits = target_logits.clone()
            force_tokens(target_logits, kept, draft_token_ids)
            return target_logits

        token = current_relaxation.set(relax)
        try:
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        finally:
            current_relaxation.reset(token)


def _rule_tensors(
    rules: Sequence[RequestRule], num_draft_tokens: list[int], device: torch.device
) -> dict[str, Any]:
    """The rules as `relaxed_acceptance` takes them: one entry a draft token."""
    repeats = torch.tensor(num_draft_tokens)

    def spread(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(repeats, dim=0).to(device)

    stops = [rule.stop_token_ids if rule.verification.guard_stop_tokens else () for rule in rules]
    width = max(map(len, stops), default=0)
    return {
        "top_k": spread([rule.verification.top_k if rule.relaxes else 0 for rule in rules], torch.int64),
        "min_prob": spread([rule.verification.min_prob for rule in rules], torch.float32),
        "min_ratio": spread([rule.verification.min_ratio for rule in rules], torch.float32),
        "stop_token_ids": spread([[*ids, *[-1] * (width - len(ids))] for ids in stops], torch.int64),
    }
