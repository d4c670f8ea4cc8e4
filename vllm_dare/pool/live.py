"""Text that has just been written, ready to draft from: the newest in memory, the rest in frozen segments."""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from vllm_dare.errors import PoolError
from vllm_dare.pool.segment import SEPARATOR, Provenance, Segment
from vllm_dare.pool.suffix_array import build_suffix_index

# A run is merged with the one before while that is less than so many times as long: a token is then sorted
# again about log4(tokens) times, and there are about as many runs.
MERGE_RATIO = 4
_IDENTITIES = itertools.count(1)


class LiveRun:
    """Some documents and their sorted suffixes, never changed; its arrays are those of a `Segment`.

    Attributes:
        tokens, suffix_array, heads, head_starts: int32, see `Segment`.
        identity: no other run of this process has the same, and hardly a segment.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.identity = next(_IDENTITIES)
        self.suffix_array, self.heads, self.head_starts = build_suffix_index(tokens)


Source = LiveRun | Segment
Sources = tuple[Source, ...]


class LiveDocument(NamedTuple):
    """One text.

    Attributes:
        tokens: int32[length], at least one, none of them `SEPARATOR`, and no end-of-text token.
        group: whose; None for text of no group, which only the global text takes.
        provenance: how it was verified.
        key: see `PoolDocument`; 0 if it is not known whose it is.
    """

    tokens: np.ndarray
    group: str | None
    provenance: Provenance
    key: int = 0


class LiveText:
    """Documents in a few runs, the oldest first; whoever holds `runs` goes on reading what it got.

    Attributes:
        runs: see `LiveRun`.
    """

    def __init__(self) -> None:
        self.runs: tuple[LiveRun, ...] = ()

    def add(self, documents: Sequence[np.ndarray]) -> None:
        """Take in documents, each int32[length]; a tenth of a millisecond, and more for every merge."""
        if not documents:
            return
        end = np.array([SEPARATOR], np.int32)
        tokens = np.concatenate([part for document in documents for part in (document, end)])
        kept = list(self.runs)
        while kept and len(kept[-1].tokens) < MERGE_RATIO * len(tokens):
            tokens = np.concatenate((kept.pop().tokens, tokens))
        self.runs = (*kept, LiveRun(tokens))


@dataclass
class Generation:
    """The text written between two freezes.

    Attributes:
        documents: what was added, in order.
        num_tokens: how many tokens that is, each counted once.
        groups: each group's text.
        overall: everybody's; stays empty where groups are kept apart.
    """

    documents: list[LiveDocument] = field(default_factory=list)
    num_tokens: int = 0
    groups: dict[str, LiveText] = field(default_factory=dict)
    overall: LiveText = field(default_factory=LiveText)

    def runs(self, group: str | None) -> tuple[LiveRun, ...]:
        """A group's runs; empty for one without text."""
        text = None if group is None else self.groups.get(group)
        return () if text is None else text.runs


class Frozen(Protocol):
    """The part of the live text that is on disk, as it was at one moment."""

    @property
    def num_tokens(self) -> int:
        """How many tokens there are, each counted once."""

    def group_segments(self, group: str | None) -> tuple[Segment, ...]:
        """A group's segments; empty for None and for a group without text; PoolError if a file has gone."""

    def global_segments(self) -> tuple[Segment, ...]:
        """Everybody's segments; PoolError if a file has gone."""


class _State(NamedTuple):
    """What is served, replaced as a whole, so that a reader never meets a text twice or not at all."""

    frozen: Frozen
    older: Generation
    current: Generation


class LivePool:
    """What was learned while serving, by group and in all.

    The serving thread adds and reads; a background thread takes what is to be frozen and hands over the
    frozen form. Text in memory is bounded: when as much as `max_unfrozen_tokens` waits, because freezing has
    stopped or cannot keep up, the older half is forgotten. (The store bounds what is frozen.)

    Args:
        frozen: what is on disk already.
        has_global: whether there is text for everybody; False keeps groups apart, whose tenants may not see
            each other's text.
        max_unfrozen_tokens: the most tokens kept in memory, each counted once.

    Attributes:
        version: changes with whatever `segments` would return, for any group.
        broken: set when a frozen file was not there any more: read the manifest again.
    """

    def __init__(self, frozen: Frozen, *, has_global: bool, max_unfrozen_tokens: int) -> None:
        self.version = 0
        self.broken = threading.Event()
        self.has_global = has_global
        self._max_tokens = max_unfrozen_tokens
        self._lock = threading.Lock()
        self._state = _State(frozen, Generation(), Generation())

    @property
    def num_waiting(self) -> int:
        """How many tokens would be taken by `take`."""
        return self._state.current.num_tokens

    @property
    def num_tokens(self) -> int:
        """How many tokens draft, on disk and in memory, each counted once."""
        frozen, older, current = self._state
        return frozen.num_tokens + older.num_tokens + current.num_tokens

    def add(self, documents: Sequence[LiveDocument]) -> None:
        """Make documents draft from now on; those that have no group are dropped where groups are apart."""
        kept = [document for document in documents if document.group is not None or self.has_global]
        if not kept:
            return
        by_group: dict[str, list[np.ndarray]] = {}
        for document in kept:
            if document.group is not None:
                by_group.setdefault(document.group, []).append(document.tokens)
        with self._lock:
            num_tokens = sum(len(document.tokens) for document in kept)
            current = self._room_for(num_tokens)
            for group, texts in by_group.items():
                current.groups.setdefault(group, LiveText()).add(texts)
            if self.has_global:
                current.overall.add([document.tokens for document in kept])
            current.documents += kept
            current.num_tokens += num_tokens
            self.version += 1

    def segments(self, group: str | None) -> tuple[Sources, Sources]:
        """The (group's, everybody's) sources, oldest first; microseconds, but for files to be mapped.

        A text may be in both, as in the pool; it is never twice in one.
        """
        frozen, older, current = self._state
        own, overall = self._frozen_segments(frozen, group)
        return (
            (*own, *older.runs(group), *current.runs(group)),
            (*overall, *older.overall.runs, *current.overall.runs),
        )

    def take(self) -> Generation:
        """Begin a freeze: what has been added so far, which goes on drafting until `swap`."""
        with self._lock:
            frozen, _, current = self._state
            self._state = _State(frozen, current, Generation())
            return current

    def swap(self, frozen: Frozen, taken: Generation | None = None) -> None:
        """Serve what is on disk now; if ``taken`` is part of it, then no longer from memory."""
        with self._lock:
            _, older, current = self._state
            self._state = _State(frozen, Generation() if older is taken else older, current)
            self.version += 1

    def _room_for(self, num_tokens: int) -> Generation:
        """The generation to add to, a fresh one if the current one has half of what memory may hold."""
        frozen, _, current = self._state
        if current.documents and current.num_tokens + num_tokens > self._max_tokens // 2:
            self._state = _State(frozen, current, current := Generation())
        return current

    def _frozen_segments(self, frozen: Frozen, group: str | None) -> tuple[Sources, Sources]:
        try:
            return frozen.group_segments(group), frozen.global_segments() if self.has_global else ()
        except PoolError:  # another process has replaced it, or somebody removed it
            self.broken.set()
            return (), ()
