"""A pytest plugin for vLLM's own tests of its rejection sampler: they get ours.

DARE_SAMPLER says what it does: "native" leaves vLLM's sampler (with its CPU kernels), "strict" gives every
request a strict rule, "spent" a relaxed one whose budget is nothing, so that all of our code runs and must
not change a decision.
"""

import os
from typing import Any

import pytest

from tests.unit.verification.test_sampler import register_cpu_kernels
from vllm_dare.engine import plugin
from vllm_dare.verification.rule import VerificationConfig

RULES = {
    "strict": VerificationConfig(),
    "spent": VerificationConfig(preset="fast", max_relaxed=0),
}


def pytest_configure(config: pytest.Config) -> None:
    """Before vLLM's tests import the sampler's name."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if current_platform.is_cpu():
        register_cpu_kernels()
        plugin.CPU_EXPANSION.apply()
    mode = os.environ["DARE_SAMPLER"]
    if mode == "native":
        return
    plugin.RELAXED_ACCEPTANCE.apply()
    plugin.RELAXED_RANDOMNESS.apply()
    from vllm_dare.verification.request_rule import RequestRule
    from vllm_dare.verification.sampler import RelaxedRejectionSampler
    from vllm_dare.verification.token_guards import TokenGuards

    native = rejection_sampler.RejectionSampler

    class OfUpstreamTests(RelaxedRejectionSampler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(native(*args, **kwargs), list, TokenGuards(1, list, lambda _: []))

        def forward(self, metadata: Any, *args: Any, **kwargs: Any) -> Any:
            rules = [RequestRule(RULES[mode]) for _ in metadata.num_draft_tokens]
            self.rules_of_batch = lambda: rules
            return super().forward(metadata, *args, **kwargs)

    rejection_sampler.RejectionSampler = OfUpstreamTests
