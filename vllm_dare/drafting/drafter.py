"""From pool segments and requests' texts to draft chains, a whole batch at a time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_dare.drafting.chain import draft_batch, workspace_size
from vllm_dare.pool.kernels import NUM_COLUMNS, segment_row
from vllm_dare.pool.live import LivePool, LiveRun
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import Segment

# What one occurrence counts. The global segment holds the group's documents too, so a group's occurrence
# counts twice; more weight for the group did not help on the data tried.
_GROUP_WEIGHT = 1.0
_GLOBAL_WEIGHT = 1.0


# So many groups' sources are kept; a batch job goes through groups, and each keeps files mapped.
_MAX_GROUPS = 4096


@dataclass(frozen=True, eq=False)
class Sources:
    """The segments that draft for a request.

    Attributes:
        segments: kept here so that their mapped memory, which `table` has the addresses of, stays.
        table: int64[segments, NUM_COLUMNS], as the kernels take them.
        weights: float64[segments], what one occurrence in each counts.
    """

    segments: tuple[Segment | LiveRun, ...]
    table: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls, group: tuple[Segment | LiveRun, ...] = (), overall: tuple[Segment | LiveRun, ...] = ()
    ) -> "Sources":
        """The segments of a group and the global ones; without any, the own text alone drafts."""
        segments = (*group, *overall)
        table = np.zeros((len(segments), NUM_COLUMNS), dtype=np.int64)
        for i, segment in enumerate(segments):
            table[i] = segment_row(segment)
        return cls(segments, table, np.array([_GROUP_WEIGHT] * len(group) + [_GLOBAL_WEIGHT] * len(overall)))


class Drafter:
    """Drafts for batches of requests; a pure function of (pool, request text, group, limits).

    Args:
        pool: the retrieval pool; None drafts from each request's own text alone.
        max_drafts: the longest chain, in tokens.
        vocab_size: no token id from here on is ever drafted.
        live: what has been learned while serving; None without learning.
        min_survival: a chain ends before the first token that survives with less probability; 0 keeps
            every chain at full length.
    """

    def __init__(
        self,
        pool: RetrievalPool | None,
        max_drafts: int,
        vocab_size: int,
        min_survival: float = 0.0,
        live: LivePool | None = None,
    ) -> None:
        self.pool = pool
        self.max_drafts = max_drafts
        self.vocab_size = vocab_size
        self.min_survival = min_survival
        self._live = live
        self._live_version = 0
        self._workspace = np.empty(0, dtype=np.int64)
        # The most recently used come last.
        self._sources: dict[str | None, Sources] = {}

    def sources(self, group: str | None) -> Sources:
        """The sources for a group; for an unknown group or None, the global segments alone.

        Raises:
            PoolError: a segment file has gone or is damaged.
        """
        if self.pool is None:
            return Sources.of()
        learned: tuple[tuple[Segment | LiveRun, ...], ...] = ((), ())
        if self._live is not None:
            if self._live_version != self._live.version:
                self._sources.clear()
                self._live_version = self._live.version
            learned = self._live.segments(group)
        elif group not in self.pool.groups:
            group = None
        sources = self._sources.pop(group, None)
        if sources is None:
            sources = Sources.of(
                (*self.pool.group_segments(group), *learned[0]), (*self.pool.global_segments(), *learned[1])
            )
            if len(self._sources) >= _MAX_GROUPS:
                del self._sources[next(iter(self._sources))]
        self._sources[group] = sources
        return sources

    def draft(
        self,
        token_ids: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
        sources: list[Sources],
        seeds: npt.NDArray[np.int64] | None = None,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Draft for the requests of a batch.

        Args:
            token_ids: int32[any, max_model_len], texts, as vLLM keeps them.
            rows: int64[batch], each request's row in `token_ids`.
            sizes: int64[batch], the number of tokens of its text so far, prompt and output.
            limits: int64[batch], the longest chain allowed for it; cut to `max_drafts`.
            sources: for each request, from `sources()`.
            seeds: int64[batch], see `draft_chain`; None drafts the likeliest tokens for all.

        Returns:
            drafts int32[batch, max_drafts], survival probabilities float32[batch, max_drafts] and chain
            lengths int64[batch]; what lies beyond a chain's length is undefined.

        Raises:
            TypeError: `token_ids` is not a C-contiguous int32 array, which the kernels could only misread.
        """
        if token_ids.dtype != np.int32 or not token_ids.flags.c_contiguous:
            raise TypeError(f"token_ids must be C-contiguous int32, not {token_ids.dtype}")
        batch = len(rows)
        width = max((len(one.segments) for one in sources), default=0)
        tables = np.zeros((batch, width, NUM_COLUMNS), dtype=np.int64)
        weights = np.zeros((batch, width), dtype=np.float64)
        for i, one in enumerate(sources):
            tables[i, : len(one.segments)] = one.table
            weights[i, : len(one.segments)] = one.weights
        drafts = np.empty((batch, self.max_drafts), dtype=np.int32)
        survivals = np.empty((batch, self.max_drafts), dtype=np.float32)
        lengths = np.empty(batch, dtype=np.int64)
        words = workspace_size(width, self.max_drafts)
        if self._workspace.size < words:
            self._workspace = np.empty(words, dtype=np.int64)
        draft_batch(
            self._workspace,
            tables,
            weights,
            token_ids,
            rows,
            sizes,
            np.minimum(limits, self.max_drafts),
            np.zeros(batch, dtype=np.int64) if seeds is None else seeds,
            self.vocab_size,
            self.min_survival,
            drafts,
            survivals,
            lengths,
        )
        return drafts, survivals, lengths

    def compile(self) -> None:
        """Compile the kernels, or load them from numba's cache, before the first request waits for them."""
        text = np.zeros((1, 4), dtype=np.int32)
        one = np.ones(1, dtype=np.int64)
        self.draft(text, one - 1, one * 4, one, [self.sources(None)])
