"""Counting what becomes of drafts, for `/metrics`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.drafting.drafter import Drafts
from vllm_dare.engine.metrics_file import MetricsFile
from vllm_dare.pool.kernels import CACHE


@dataclass(frozen=True, eq=False)
class _Sent:
    """The chains that the step in progress verifies.

    Attributes:
        requests: whose they are; kept, so that no other object gets the identity of one.
        chains: of each request's identity, its chain's place below.
        lengths: int64[requests]; origins: int8[requests, K]; slots: int64[requests], of their groups.
    """

    requests: Sequence[object]
    chains: dict[int, int]
    lengths: npt.NDArray[np.int64]
    origins: npt.NDArray[np.int8]
    slots: npt.NDArray[np.int64]


class DraftMetrics:
    """Tells a metrics file what is sent and what is accepted; some microseconds a step.

    The counts are those of vLLM's own `vllm:spec_decode_…` metrics.

    Args:
        file: receives the numbers.
    """

    def __init__(self, file: MetricsFile) -> None:
        self._file = file
        self._sent: _Sent | None = None

    def sent(
        self,
        requests: Sequence[Any],
        groups: Sequence[str | None],
        drafts: Drafts,
        lengths: npt.NDArray[np.int64],
        look_up_seconds: float,
    ) -> None:
        """Chains go out.

        Args:
            requests: the same object means the same request.
            groups: each request's group.
            drafts: what was found; lengths: int64[requests], how much of each chain goes out.
            look_up_seconds: how long the look-up took.
        """
        file = self._file
        file.observe("look_up_seconds", look_up_seconds)
        file.observe("chain_tokens", lengths)
        some = lengths > 0
        file.observe("match_tokens", drafts.matches[some, 0])
        slots = np.array([file.group_slot(group) for group in groups], np.int64)
        chains = {id(request): chain for chain, request in enumerate(requests)}
        self._sent = _Sent(requests, chains, lengths.copy(), drafts.origins.copy(), slots)

    def rested(self) -> None:
        """Nothing goes out, since it would not pay."""
        self._file.add("resting_steps")

    def relaxed(self, tokens: int) -> None:
        """So many tokens were kept by relaxed rules since the start."""
        self._file.set("relaxed_tokens", tokens)

    def verified(
        self, requests: Sequence[Any], scheduled: npt.NDArray[np.int64], written: npt.NDArray[np.int64]
    ) -> None:
        """A step is done.

        Args:
            requests: those that wrote.
            scheduled: int64[requests], how many tokens the model ran for each.
            written: int64[requests], how many each wrote.
        """
        sent, self._sent = self._sent, None
        if sent is None:
            return
        chains = np.array([sent.chains.get(id(request), -1) for request in requests], np.int64)
        numbers = self._file.numbers
        numbers("drafts")[0] += _count(
            chains,
            scheduled,
            written,
            sent.lengths,
            sent.origins,
            sent.slots,
            numbers("draft_tokens"),
            numbers("accepted_tokens"),
            numbers("accepted_tokens_per_position"),
            numbers("group_draft_tokens"),
            numbers("group_accepted_tokens"),
        )


@njit(cache=CACHE, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    chains, scheduled, written, lengths, origins, slots,
    drafted, accepted, by_position, group_drafted, group_accepted,
):  # fmt: skip
    """Add up the chains that were verified; returns how many these are."""
    number = 0
    for i in range(chains.size):
        chain, tokens = chains[i], scheduled[i] - 1
        # More than was sent is a prompt: the request was preempted and starts again.
        if chain < 0 or tokens <= 0 or tokens > lengths[chain]:
            continue
        number += 1
        kept = min(written[i] - 1, tokens)
        group_drafted[slots[chain]] += tokens
        group_accepted[slots[chain]] += kept
        for place in range(tokens):
            drafted[origins[chain, place]] += 1
            if place < kept:
                accepted[origins[chain, place]] += 1
                by_position[place] += 1
    return number


def compile_metrics() -> None:
    """Compile the kernel, or load it from numba's cache, before the first request waits for it."""
    one = np.ones(1, np.int64)
    numbers = [np.zeros(4) for _ in range(5)]
    _count(0 * one, 2 * one, one, one, np.zeros((1, 1), np.int8), 0 * one, *numbers)
