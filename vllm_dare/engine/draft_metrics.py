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

    What is accepted equals vLLM's own `vllm:spec_decode_…` counts, but for requests that are aborted while a
    step runs, whose share of that step vLLM leaves out. Drafts may be fewer, since vLLM counts the places
    that it pads, too.

    Args:
        file: receives the numbers.
    """

    def __init__(self, file: MetricsFile) -> None:
        self._file = file
        self._sent: _Sent | None = None
        self._histograms = tuple(
            part
            for name in ("look_up_seconds", "chain_tokens", "match_tokens")
            for part in (file.numbers(name), file.bounds(name))
        )
        self._drafts = file.numbers("drafts")
        self._counters = tuple(
            file.numbers(name)
            for name in (
                "draft_tokens",
                "accepted_tokens",
                "accepted_tokens_per_position",
                "group_draft_tokens",
                "group_accepted_tokens",
            )
        )

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
            groups: what each request is counted by: its group, or what stands for several.
            drafts: what was found; lengths: int64[requests], how much of each chain goes out.
            look_up_seconds: how long the look-up took.
        """
        _observe_sent(look_up_seconds, lengths, drafts.matches, *self._histograms)
        slots = np.array([self._file.group_slot(group) for group in groups], np.int64)
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
        self._drafts[0] += _count(
            chains, scheduled, written, sent.lengths, sent.origins, sent.slots, *self._counters
        )


@njit(cache=CACHE, nogil=True)
def _observe_sent(  # type: ignore[no-untyped-def]
    seconds, lengths, matches, second_numbers, second_bounds, chain_numbers, chain_bounds, match_numbers,
    match_bounds,
):  # fmt: skip
    """Add a look-up, the lengths of the chains and of what their first tokens were found after."""
    _observe(second_numbers, second_bounds, seconds)
    for i in range(lengths.size):
        _observe(chain_numbers, chain_bounds, lengths[i])
        if lengths[i] > 0:
            _observe(match_numbers, match_bounds, matches[i, 0])


@njit(cache=CACHE, nogil=True)
def _observe(numbers, bounds, value):  # type: ignore[no-untyped-def]
    """Add a value to a histogram: its buckets and, as the last number, its sum."""
    numbers[np.searchsorted(bounds, value)] += 1
    numbers[-1] += value


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
    """Compile the kernels, or load them from numba's cache, before the first request waits for them."""
    one = np.ones(1, np.int64)
    numbers = [np.zeros(4) for _ in range(6)]
    _count(0 * one, 2 * one, one, one, np.zeros((1, 1), np.int8), 0 * one, *numbers[:5])
    _observe_sent(1e-5, one, np.ones((1, 1), np.int16), *numbers)
