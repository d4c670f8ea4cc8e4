"""The background work of learning: what was written goes to disk, what others wrote comes from there."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from vllm_dare.pool.live import LiveDocument, LivePool
from vllm_dare.pool.live_orders import Unfollowed
from vllm_dare.pool.live_store import LiveStore

_LOOK_SECONDS = 1.0  # how often other processes' text is looked for
_FREEZE_SECONDS = 10.0  # text in memory gets no older than this …
_FREEZE_TOKENS = 2**16  # … and no longer than this, or …
_FREEZE_SHARE = 16  # … this part of `max_tokens`
_MEMORY_SHARE = 4  # memory may hold this part of `max_tokens`, the disk the rest
_JOIN_SECONDS = 3.0  # vLLM kills an engine that takes more than five seconds to end


class Engine(Protocol):
    """What learning asks of the engine that it learns for, from the background."""

    def gather(self) -> None:
        """`LiveKeeper.add` what there is; called about once a second."""

    def forget(self, unfollowed: Unfollowed) -> None:
        """Do not `add` what the requests write that are there now, as far as it is to be forgotten."""

    def renew(self) -> None:
        """From now on draft for no request from what `LiveKeeper.live` does not hold any more."""


class LiveKeeper:
    """Learns for one process.

    If the disk fails, or the directory goes, no more text is frozen or read: `on_stop` is told, once, and
    text is learned in memory alone.

    Args:
        store: the live directory.
        has_global: whether there is text for everybody, see `LivePool`.
        max_tokens: the most tokens kept, on disk and in memory together, each counted once.
        on_stop: called, once, with the error that ended freezing.

    Attributes:
        live: what drafts.
    """

    def __init__(
        self, store: LiveStore, *, has_global: bool, max_tokens: int, on_stop: Callable[[Exception], None]
    ) -> None:
        self._store = store
        self._frozen = store.read()
        self.live = LivePool(
            self._frozen, has_global=has_global, max_unfrozen_tokens=max_tokens // _MEMORY_SHARE
        )
        self._freeze_tokens = min(_FREEZE_TOKENS, max_tokens // _FREEZE_SHARE)
        self._on_stop = on_stop
        self._failed = False
        self._oldest: float | None = None  # when the oldest text in memory was written
        self._engine: Engine | None = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-dare-learning", daemon=True)

    def start(self, engine: Engine | None = None) -> None:
        """Begin the background work."""
        self._engine = engine
        self._store.orders.start()
        self._thread.start()

    def add(self, documents: Sequence[LiveDocument]) -> None:
        """Make documents draft at once, and have them frozen in time."""
        self.live.add(documents)
        if self._oldest is None:
            self._oldest = time.monotonic()
        if self.live.num_waiting >= self._freeze_tokens:
            self._wake.set()

    def tend(self) -> None:
        """One round of background work: gather, then freeze what is due or read what others have written."""
        try:
            if self._engine is not None:
                self._engine.gather()
            unfollowed = self._store.orders.unfollowed()
            if self._failed:
                self._forget_all(unfollowed)
            elif unfollowed is not None or self._is_due():
                self._freeze(unfollowed)
            elif self.live.broken.is_set() or self._store.has_changed():
                self._read()
        except Exception as error:  # learning may end, serving may not
            if not self._failed:
                self._failed = True
                self._on_stop(error)

    def close(self) -> None:
        """Freeze what is left and end the background work; does nothing the second time."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
        if not self._thread.is_alive():
            self.tend()

    def _run(self) -> None:
        while not self._closing.is_set():
            self.tend()
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()

    def _is_due(self) -> bool:
        waiting = self.live.num_waiting
        old = self._oldest is not None and time.monotonic() - self._oldest >= _FREEZE_SECONDS
        return waiting >= self._freeze_tokens or (waiting > 0 and (old or self._closing.is_set()))

    def _freeze(self, unfollowed: Unfollowed | None) -> None:
        self._oldest = None
        self._begin_to_follow(unfollowed)
        taken = self.live.take()
        self._store.freeze(taken.documents)
        self._frozen = self._store.read(self._frozen)
        self.live.swap(self._frozen, taken)
        self._end_following(unfollowed)

    def _forget_all(self, unfollowed: Unfollowed | None) -> None:
        """Where the disk has failed: an order to forget some text takes all of it, in memory and mapped."""
        if unfollowed is None or unfollowed.only_writes:
            return
        self._begin_to_follow(unfollowed)
        self._frozen = self._store.nothing()
        self.live.swap(self._frozen, self.live.take())
        self._end_following(unfollowed)

    def _begin_to_follow(self, unfollowed: Unfollowed | None) -> None:
        if unfollowed is not None and self._engine is not None:
            self._engine.forget(unfollowed)

    def _end_following(self, unfollowed: Unfollowed | None) -> None:
        if unfollowed is None:
            return
        if self._engine is not None and not unfollowed.only_writes:
            self._engine.renew()
        self._store.orders.followed(unfollowed.number)

    def _read(self) -> None:
        self.live.broken.clear()
        self._frozen = self._store.read(self._frozen)
        self.live.swap(self._frozen)


def frozen_share(max_tokens: int) -> int:
    """How many of ``max_tokens`` the disk may hold; the rest is for what is not frozen yet."""
    return max_tokens - max_tokens // _MEMORY_SHARE
