"""From pool segments and requests' texts to draft chains, a whole batch at a time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_dare.drafting.chain import draft_batch, workspace_size
from vllm_dare.pool.kernels import NUM_COLUMNS, segment_row
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import Segment

# What one occurrence counts. The global segment holds the group's documents too, so a group's occurrence
# counts twice; more weight for the group did not help on the data tried.
_GROUP_WEIGHT = 1.0
_GLOBAL_WEIGHT = 1.0


@dataclass(frozen=True)
class Sources:
    """The segments that draft for one group: rows of the drafter's table and their weights."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]


class Drafter:
    """Drafts for batches of requests; a pure function of (pool, request text, group, limits).

    Args:
        pool: the retrieval pool; None drafts from each request's own text alone.
        max_drafts: the longest chain, in tokens.
        vocab_size: no token id from here on is ever drafted.
        min_survival: a chain ends before the first token that survives with less probability; 0 keeps
            every chain at full length.
    """

    def __init__(
        self, pool: RetrievalPool | None, max_drafts: int, vocab_size: int, min_survival: float = 0.0
    ) -> None:
        self.pool = pool
        self.max_drafts = max_drafts
        self.vocab_size = vocab_size
        self.min_survival = min_survival
        self._workspace = np.empty(0, dtype=np.int64)
        self._table = np.empty((0, NUM_COLUMNS), dtype=np.int64)
        self._row_of: dict[str, int] = {}
        # The table holds addresses only; this keeps the mapped arrays behind them alive.
        self._segments: list[Segment] = []
        self._sources: dict[str | None, Sources] = {}

    def sources(self, group: str | None) -> Sources:
        """The sources for a group; for an unknown group or None, the global segments alone.

        Raises:
            PoolError: a segment file has gone or is damaged.
        """
        if group not in self._sources:
            if self.pool is None or (group is not None and group not in self.pool.groups):
                group = None
            self._sources.setdefault(group, self._open_sources(group))
        return self._sources[group]

    def _open_sources(self, group: str | None) -> Sources:
        if self.pool is None:
            return Sources((), ())
        of_group = self.pool.group_segments(group)
        overall = self.pool.global_segments()
        rows = tuple(self._row(segment) for segment in (*of_group, *overall))
        return Sources(rows, (_GROUP_WEIGHT,) * len(of_group) + (_GLOBAL_WEIGHT,) * len(overall))

    def _row(self, segment: Segment) -> int:
        if segment.name not in self._row_of:
            self._row_of[segment.name] = len(self._segments)
            self._segments.append(segment)
            self._table = np.vstack([self._table, segment_row(segment)])
        return self._row_of[segment.name]

    def draft(
        self,
        token_ids: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
        sources: list[Sources],
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Draft for the requests of a batch.

        Args:
            token_ids: int32[any, max_model_len], texts, as vLLM keeps them.
            rows: int64[batch], each request's row in `token_ids`.
            sizes: int64[batch], the number of tokens of its text so far, prompt and output.
            limits: int64[batch], the longest chain allowed for it; cut to `max_drafts`.
            sources: for each request, from `sources()`.

        Returns:
            drafts int32[batch, max_drafts], survival probabilities float32[batch, max_drafts] and chain
            lengths int64[batch]; what lies beyond a chain's length is undefined.
        """
        batch = len(rows)
        width = max((len(one.rows) for one in sources), default=0)
        source_rows = np.full((batch, width), -1, dtype=np.int64)
        weights = np.zeros((batch, width), dtype=np.float64)
        for i, one in enumerate(sources):
            source_rows[i, : len(one.rows)] = one.rows
            weights[i, : len(one.rows)] = one.weights
        drafts = np.empty((batch, self.max_drafts), dtype=np.int32)
        survivals = np.empty((batch, self.max_drafts), dtype=np.float32)
        lengths = np.empty(batch, dtype=np.int64)
        words = workspace_size(width, self.max_drafts)
        if self._workspace.size < words:
            self._workspace = np.empty(words, dtype=np.int64)
        draft_batch(
            self._workspace,
            self._table,
            source_rows,
            weights,
            token_ids,
            rows,
            sizes,
            np.minimum(limits, self.max_drafts),
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
