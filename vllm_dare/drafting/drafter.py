"""From pool segments and requests' texts to draft chains, a whole batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from vllm_dare.drafting.blend import GLOBAL, GROUP, Blend
from vllm_dare.drafting.cache import make_cache, touch
from vllm_dare.drafting.chain import (
    BATCH,
    DRAFTS,
    ENDS,
    LENGTHS,
    LIMITS,
    MATCHES,
    MEMORIES,
    NUM_ARGUMENTS,
    NUM_SOURCES,
    NUMBERS,
    ORIGINS,
    RECORDS,
    ROWS,
    SEEDS,
    SIZES,
    SURVIVALS,
    TABLES,
    TEXT_BYTES,
    TEXTS,
    VOCAB_SIZE,
    WIDTH,
    WORKSPACE,
    draft_batch,
)
from vllm_dare.drafting.counting import KIND, ORIGIN, SOURCE_COLUMNS
from vllm_dare.drafting.scratch import memory_size, workspace_size
from vllm_dare.pool.kernels import NUM_COLUMNS, segment_row
from vllm_dare.pool.live import LivePool, LiveRun
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import Segment

# So many groups' sources are kept; a batch job goes through groups, and each keeps files mapped.
_MAX_GROUPS = 4096


@dataclass(frozen=True, eq=False)
class Memory:
    """What look-ups carry from one step of a request to the next.

    Attributes:
        words: int64[memory_size], see `vllm_dare.drafting.scratch.memory_size`.
        address: where they are.
    """

    words: npt.NDArray[np.int64]
    address: int


class Origin(IntEnum):
    """What a draft token was taken from; the first that has it after the longest context."""

    OWN = 0
    GROUP = 1
    GLOBAL = 2
    LIVE = 3


@dataclass(frozen=True, eq=False)
class Sources:
    """The segments that draft for a request.

    Attributes:
        segments: kept here so that their mapped memory, which `table` has the addresses of, stays.
        table: int64[segments, SOURCE_COLUMNS], as the kernels take them: the group's, then the global ones.
        address: where the table is.
    """

    segments: tuple[Segment | LiveRun, ...]
    table: npt.NDArray[np.int64]
    address: int

    @classmethod
    def of(
        cls,
        group: tuple[Segment | LiveRun, ...] = (),
        overall: tuple[Segment | LiveRun, ...] = (),
        live_group: tuple[Segment | LiveRun, ...] = (),
        live_overall: tuple[Segment | LiveRun, ...] = (),
    ) -> "Sources":
        """A group's segments and the global ones, of the pool and of what was learned; without any, the own
        text alone drafts.
        """
        parts = (
            (group, GROUP, Origin.GROUP),
            (live_group, GROUP, Origin.LIVE),
            (overall, GLOBAL, Origin.GLOBAL),
            (live_overall, GLOBAL, Origin.LIVE),
        )
        # A segment without text would only take time.
        rows = [
            (segment, kind, origin)
            for segments, kind, origin in parts
            for segment in segments
            if segment.tokens.size
        ]
        table = np.zeros((len(rows), SOURCE_COLUMNS), dtype=np.int64)
        for row, (segment, kind, origin) in zip(table, rows, strict=True):
            row[:NUM_COLUMNS], row[KIND], row[ORIGIN] = segment_row(segment), kind, origin
        return cls(tuple(segment for segment, _, _ in rows), table, table.ctypes.data)

    def memory(self) -> Memory:
        """An empty memory for one request, which `Drafter.draft` keeps between its steps."""
        words = np.zeros(memory_size(len(self.segments)), dtype=np.int64)
        return Memory(words, words.ctypes.data)


@dataclass(frozen=True, eq=False)
class Batch:
    """The requests of a step; most steps have the same ones as the step before. `Drafter.batch` makes one.

    Attributes:
        sources, memories: kept here, so that the arrays whose addresses follow stay.
        rows, tables, num_sources, memory_addresses, seeds: int64[batch], see `draft_batch`.
        ends: int32[batch], the same.
    """

    sources: tuple[Sources, ...]
    memories: tuple[Memory, ...]
    rows: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int64]
    num_sources: npt.NDArray[np.int64]
    memory_addresses: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Drafts:
    """The chains of a batch; what lies beyond a chain's length is undefined.

    Attributes:
        tokens: int32[batch, max_drafts].
        survivals: float32[batch, max_drafts], the probability that the chain is right up to and including
            each token, as far as the pool can tell.
        lengths: int64[batch].
        origins: int8[batch, max_drafts], see `Origin`.
        matches: int16[batch, max_drafts], the length in tokens of the longest context that had each token.
    """

    tokens: npt.NDArray[np.int32]
    survivals: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    origins: npt.NDArray[np.int8]
    matches: npt.NDArray[np.int16]

    @classmethod
    def empty(cls, batch: int, max_drafts: int) -> "Drafts":
        """Room for chains."""
        shape = (batch, max_drafts)
        return cls(
            np.empty(shape, dtype=np.int32),
            np.empty(shape, dtype=np.float32),
            np.zeros(batch, dtype=np.int64),
            np.empty(shape, dtype=np.int8),
            np.empty(shape, dtype=np.int16),
        )


class Drafter:
    """Drafts for batches of requests; a pure function of (pool, request text, group, limits).

    Args:
        pool: the retrieval pool; None drafts from each request's own text alone.
        max_drafts: the longest chain, in tokens.
        vocab_size: no token id from here on is ever drafted.
        live: what has been learned while serving; None without learning.
    """

    def __init__(
        self,
        pool: RetrievalPool | None,
        max_drafts: int,
        vocab_size: int,
        live: LivePool | None = None,
    ) -> None:
        self.max_drafts = max_drafts
        self.vocab_size = vocab_size
        self._live = live
        self._live_version = 0
        # What the kernel is given, see `draft_batch`, and the arrays that it has the addresses of.
        self._arguments = np.zeros(NUM_ARGUMENTS, dtype=np.int64)
        self._address = self._arguments.ctypes.data
        self._token_ids = np.empty((0, 0), dtype=np.int32)
        self._batch: Batch | None = None
        self._workspace = self._sizes = self._limits = np.empty(0, dtype=np.int64)
        self._drafts = Drafts.empty(0, max_drafts)
        # The most recently used come last.
        self._sources: dict[str | None, Sources] = {}
        self._cache = self._spare_cache = np.empty(0, dtype=np.int64)
        self.serve(pool)

    def serve(self, pool: RetrievalPool | None) -> None:
        """Draft from this pool from now on; sources that were handed out are those of the pool before."""
        self.pool = pool
        blend = pool.blend if pool is not None else Blend.default()
        self._numbers = blend.numbers()
        self._asks_groups = blend.asks_groups
        wanted = make_cache(pool.num_tokens if pool is not None else 0)
        # The first of the largest: one as large goes on, as records know whose they are.
        self._cache = max(self._cache, self._spare_cache, wanted, key=len)
        self._spare_cache = np.empty(0, dtype=np.int64)
        self._sources.clear()
        self._batch = None

    def make_room(self, pool: RetrievalPool) -> None:
        """Take the memory that a pool needs before it is served, which may be done in the background.

        Else the first step that drafts from it waits for the memory, which may take a quarter of a second.
        """
        cache = make_cache(pool.num_tokens)
        if cache.size > self._cache.size:
            touch(cache)
            self._spare_cache = cache

    def sources(self, group: str | None) -> Sources:
        """The sources for a group; for an unknown group or None, the global segments alone, as for all where
        the pool's fit has found that groups do not help (`Blend.asks_groups`).

        Raises:
            PoolError: a segment file has gone or is damaged.
        """
        if self.pool is None:
            return Sources.of()
        if not self._asks_groups:
            group = None
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
            sources = Sources.of(self.pool.group_segments(group), self.pool.global_segments(), *learned)
            if len(self._sources) >= _MAX_GROUPS:
                del self._sources[next(iter(self._sources))]
        self._sources[group] = sources
        return sources

    def batch(
        self,
        rows: Sequence[int],
        sources: Sequence[Sources],
        seeds: Sequence[int] | None = None,
        ends: Sequence[int] | None = None,
        memories: Sequence[Memory] | None = None,
    ) -> Batch:
        """The requests to draft for.

        Args:
            rows: each request's row in the `token_ids` that `draft` is given.
            sources: for each, from `sources()`.
            seeds: see `draft_chain`; None drafts the likeliest tokens for all.
            ends: the token to draft where documents end, below 0 for none; None drafts none. vLLM gains
                nothing by it: the step that verifies a text's last token writes the end token too.
            memories: for each request its own `Sources.memory()`, which carries what was found from one step
                to the next; the drafts are the same without. None begins with empty ones.
        """
        if memories is None:
            memories = [one.memory() for one in sources]
        return Batch(
            tuple(sources),
            tuple(memories),
            np.array(rows, dtype=np.int64),
            np.array([one.address for one in sources], dtype=np.int64),
            np.array([len(one.segments) for one in sources], dtype=np.int64),
            np.array([memory.address for memory in memories], dtype=np.int64),
            np.zeros(len(rows), dtype=np.int64) if seeds is None else np.array(seeds, dtype=np.int64),
            np.full(len(rows), -1, dtype=np.int32) if ends is None else np.array(ends, dtype=np.int32),
        )

    def draft(
        self,
        token_ids: npt.NDArray[np.int32],
        batch: Batch,
        sizes: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
    ) -> Drafts:
        """Draft for the requests of a batch.

        Args:
            token_ids: int32[any, max_model_len], texts, as vLLM keeps them; the same array from call to call
                is cheapest.
            batch: the requests; the same object from call to call is cheapest.
            sizes: int64[batch], the number of tokens of each text so far, prompt and output.
            limits: int64[batch], the longest chain allowed for each; cut to `max_drafts`.

        Returns:
            The chains; the next call overwrites them.

        Raises:
            TypeError: `token_ids` is not a C-contiguous int32 array, which the kernels could only misread.
        """
        if batch is not self._batch or token_ids is not self._token_ids:
            self._point_at(token_ids, batch)
        self._sizes[:] = sizes
        self._limits[:] = limits
        draft_batch(self._address)
        return self._drafts

    def _point_at(self, token_ids: npt.NDArray[np.int32], batch: Batch) -> None:
        """Tell the kernel where everything is."""
        if token_ids.dtype != np.int32 or not token_ids.flags.c_contiguous:
            raise TypeError(f"token_ids must be C-contiguous int32, not {token_ids.dtype}")
        self._batch = None  # until all is pointed at: the kernel must not be called with half of it
        number = len(batch.rows)
        if len(self._sizes) != number:
            self._sizes, self._limits = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
            self._drafts = Drafts.empty(number, self.max_drafts)
        words = workspace_size(int(batch.num_sources.max(initial=0)), self.max_drafts)
        if self._workspace.size < words:
            self._workspace = np.empty(words, dtype=np.int64)
        drafts = self._drafts
        for word, value in (
            (BATCH, number),
            (WIDTH, self.max_drafts),
            (VOCAB_SIZE, self.vocab_size),
            (TEXT_BYTES, token_ids.strides[0]),
        ):
            self._arguments[word] = value
        for word, array in (
            (WORKSPACE, self._workspace),
            (RECORDS, self._cache),
            (NUMBERS, self._numbers),
            (TEXTS, token_ids),
            (ROWS, batch.rows),
            (SIZES, self._sizes),
            (LIMITS, self._limits),
            (SEEDS, batch.seeds),
            (ENDS, batch.ends),
            (TABLES, batch.tables),
            (NUM_SOURCES, batch.num_sources),
            (MEMORIES, batch.memory_addresses),
            (DRAFTS, drafts.tokens),
            (SURVIVALS, drafts.survivals),
            (LENGTHS, drafts.lengths),
            (ORIGINS, drafts.origins),
            (MATCHES, drafts.matches),
        ):
            self._arguments[word] = array.ctypes.data
        self._token_ids, self._batch = token_ids, batch

    def compile(self) -> None:
        """Compile the kernels, or load them from numba's cache, and take the memory that they need, before
        the first request waits for them.
        """
        touch(self._cache)
        text = np.zeros((1, 4), dtype=np.int32)
        one = np.ones(1, dtype=np.int64)
        self.draft(text, self.batch([0], [self.sources(None)]), 4 * one, one)
