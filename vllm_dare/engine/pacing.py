"""Between the draft budget and vLLM's steps: what became of the drafts, how long it took, how many go next.

A step is timed from the end of one `propose` to the beginning of the next one: the scheduler, the model,
sampling and all that happens between. The time counts only if a request is in both, since between them
the engine may otherwise have waited for requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_dare.drafting.budget import DraftBudget
from vllm_dare.drafting.step_costs import StepLoad


@dataclass(frozen=True, eq=False)
class _Sent:
    """The drafts that the step in progress verifies.

    Attributes:
        chains: of each request's identity, its chain's place below; `requests` keeps these objects, so
            that no other gets the same identity.
        survivals: float32[requests, K]; lengths, kinds: int64[requests].
        at: when they were sent.
    """

    chains: dict[int, int]
    requests: Sequence[object]
    survivals: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    at: float


class DraftPacing:
    """Asks a `DraftBudget` how many drafts to send, and tells it what they did.

    Times are seconds from any beginning; it looks at no clock itself.
    """

    def __init__(self) -> None:
        self.budget = DraftBudget()
        self._sent: _Sent | None = None

    def step_ended(
        self,
        at: float,
        requests: Sequence[object],
        kinds: npt.NDArray[np.int64],
        scheduled: npt.NDArray[np.int64],
        written: npt.NDArray[np.int64],
        sequences: int,
        tokens: int,
    ) -> None:
        """A step is done.

        Args:
            at: when.
            requests: those that wrote; the same object means the same request.
            kinds: int64[requests], see `vllm_dare.drafting.budget.kind_of`.
            scheduled: int64[requests], how many tokens the model ran for each.
            written: int64[requests], how many each wrote.
            sequences, tokens: how many requests and tokens the step had, prompts included.
        """
        sent, self._sent = self._sent, None
        if sent is None:
            return
        chains = np.array([sent.chains.get(id(request), -1) for request in requests])
        verified = scheduled - 1
        # More than was sent is a prompt: the request was preempted and starts again.
        goes_on = (chains >= 0) & (verified >= 0) & (verified <= sent.lengths[chains])
        if not goes_on.any():
            return
        chains, verified = chains[goes_on], verified[goes_on]
        drafts = int(verified.sum())
        load = StepLoad(sequences, int((kinds & 1).sum()), drafts, tokens - sequences - drafts)
        self.budget.costs.observe(max(at - sent.at, 1e-9), load)
        if drafts > 0:
            accepted = np.minimum(written[goes_on] - 1, verified)
            self.budget.calibration.observe(sent.survivals[chains], sent.kinds[chains], verified, accepted)

    def send(
        self,
        requests: Sequence[object],
        kinds: npt.NDArray[np.int64],
        survivals: npt.NDArray[np.float32],
        lengths: npt.NDArray[np.int64],
        whole: npt.NDArray[np.bool_],
        at: float,
        look_up_seconds: float,
    ) -> npt.NDArray[np.int64]:
        """How much of each chain goes out now, int64[requests]; see `DraftBudget.choose`."""
        chosen = self.budget.choose(survivals, lengths, kinds, whole, look_up_seconds)
        self._remember(requests, kinds, survivals, chosen, at)
        return chosen

    def rests(
        self,
        requests: Sequence[object],
        kinds: npt.NDArray[np.int64],
        whole: npt.NDArray[np.bool_],
        at: float,
    ) -> bool:
        """Whether nothing goes out now, without looking for drafts; to be asked once a step."""
        if whole.any() or not self.budget.rests():
            return False
        nothing = np.zeros(len(requests), dtype=np.int64)
        self._remember(requests, kinds, np.zeros((len(requests), 1), dtype=np.float32), nothing, at)
        return True

    def _remember(
        self,
        requests: Sequence[object],
        kinds: npt.NDArray[np.int64],
        survivals: npt.NDArray[np.float32],
        lengths: npt.NDArray[np.int64],
        at: float,
    ) -> None:
        chains = {id(request): chain for chain, request in enumerate(requests)}
        self._sent = _Sent(chains, requests, survivals, lengths, kinds, at)
