"""What a batch run that learns asks of vLLM's worker at its end.

vLLM mixes this class into its worker (``worker_extension_cls``) and calls its method by name
(``collective_rpc``).
"""

from typing import Any


class LearningWorker:
    """A method that vLLM's worker gets; its name must not meet those of the worker."""

    model_runner: Any

    def dare_end_learning(self) -> dict[str, Any] | None:
        """See `DareProposer.end_learning`."""
        result: dict[str, Any] | None = self.model_runner.drafter.end_learning()
        return result
