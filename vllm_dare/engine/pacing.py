"""Between the draft budget and vLLM's steps: what became of the drafts, how long it took, how many go next.

A step is timed from the end of one `propose` to the beginning of the next one: the scheduler, the model,
sampling and all that happens between. The time counts only if a request is in both, since between them
the engine may otherwise have waited for requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.drafting.budget import DraftBudget
from vllm_dare.drafting.step_costs import StepLoad
from vllm_dare.pool.kernels import CACHE


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
        verified, accepted = np.empty_like(chains), np.empty_like(chains)
        number, drafts, sampled = _verified(
            chains, scheduled, written, kinds, sent.lengths, verified, accepted
        )
        if number == 0:
            return
        load = StepLoad(sequences, sampled, drafts, tokens - sequences - drafts)
        self.budget.costs.observe(max(at - sent.at, 1e-9), load)
        if drafts > 0:
            chains = chains[:number]
            self.budget.calibration.observe(
                sent.survivals[chains], sent.kinds[chains], verified[:number], accepted[:number]
            )

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
        if not self.budget.resting(len(requests)) or whole.any() or not self.budget.rests():
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


@njit(cache=CACHE, nogil=True)
def _verified(chains, scheduled, written, kinds, lengths, verified, accepted):  # type: ignore[no-untyped-def]
    """What became of the chains that were sent.

    Args:
        chains: int64[requests], each request's place in `lengths`, -1 for none; those of the requests that
            go on are moved to its beginning.
        scheduled, written, kinds: see `DraftPacing.step_ended`; lengths: int64[any], as sent.
        verified, accepted: int64[requests], receive the drafts of the requests that go on.

    Returns:
        (requests that go on, drafts verified for them, sampled requests).
    """
    number, drafts, sampled = 0, 0, 0
    for i in range(chains.size):
        sampled += kinds[i] & 1
        chain, tokens = chains[i], scheduled[i] - 1
        # More than was sent is a prompt: the request was preempted and starts again.
        if chain >= 0 and 0 <= tokens <= lengths[chain]:
            chains[number] = chain
            verified[number] = tokens
            accepted[number] = min(written[i] - 1, tokens)
            drafts += tokens
            number += 1
    return number, drafts, sampled


def compile_pacing() -> None:
    """Compile the kernels, or load them from numba's cache, before the first request waits for them."""
    pacing = DraftPacing()
    one, request = np.ones(1, dtype=np.int64), object()
    for step in range(8):
        chosen = pacing.send(
            [request], 0 * one, np.full((1, 2), 0.9, dtype=np.float32), 2 * one, one == 0, float(step), 1e-5
        )
        pacing.step_ended(step + 0.5, [request], 0 * one, chosen + 1, one, 1, 1 + int(chosen[0]))
