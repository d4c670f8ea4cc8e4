"""Whether an engine's configuration is about DARE at all, told without importing anything."""

from typing import Any

PROPOSER_PATHS = ("vllm_dare.DareProposer", "vllm_dare.engine.proposer.DareProposer")


def uses_dare(vllm_config: Any) -> bool:
    """Whether an engine configuration names our proposer."""
    speculative = vllm_config.speculative_config
    return (
        speculative is not None
        and speculative.method == "custom_class"
        and speculative.model in PROPOSER_PATHS
    )


def mentions_dare(vllm_config: Any) -> bool:
    """Whether it names our proposer or has settings of ours."""
    settings = vllm_config.additional_config
    return uses_dare(vllm_config) or (isinstance(settings, dict) and "dare" in settings)
