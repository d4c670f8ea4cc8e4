"""Following a store in the background while an engine serves."""

import threading
from collections.abc import Callable

from vllm_dare.store.cache import CacheFullError
from vllm_dare.store.mirror import Mirror
from vllm_dare.store.outbox import Outbox

_TICK_SECONDS = 1.0  # how long groups that requests ask for are gathered
_JOIN_SECONDS = 1.5  # vLLM kills an engine that takes more than five seconds to end, and learning has three
_GROUPS_A_TICK = 2000  # so many are opened in a fraction of a second
_TICKS_TO_LOOK = 5  # how often the store is asked for a newer version


class Follower:
    """Keeps a mirror up to date, and fetches the groups that requests ask for.

    Whatever fails is tried again; serving goes on with what is here.

    Args:
        mirror: what to keep up to date.
        outbox: learned text to be sent; None without learning.
        is_failing: whether the store could not be reached at start, which has been told already.
        on_failure: called with the first of several failures in a row.
        on_recovery: called when things work again after that.
    """

    def __init__(
        self,
        mirror: Mirror,
        outbox: Outbox | None = None,
        *,
        is_failing: bool = False,
        on_failure: Callable[[Exception], None],
        on_recovery: Callable[[], None],
    ) -> None:
        self._mirror = mirror
        self._outbox = outbox
        self._is_failing = is_failing
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self._wanted: set[str] = set()
        self._refused: set[str] = set()  # groups that the cache has no room for
        self._told_of_room = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-dare-store", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End the background work, once what is left is sent, if that can be done at once."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def want(self, group: str) -> None:
        """Have the text of a group fetched that is not here, if the store has it; takes no time."""
        if group in self._mirror.groups and group not in self._refused:
            self._wanted.add(group)

    def round(self, fetch: bool = True) -> None:
        """Do once what there is to do, with or without fetching the groups that are asked for."""
        try:
            self._sync(self._wanted.copy() if fetch else set())
        except Exception as error:  # of any kind: it must not end the thread unnoticed
            if not self._is_failing:
                self._on_failure(error)
            self._is_failing = True
            return
        if self._is_failing:
            self._on_recovery()
        self._is_failing = False

    def _sync(self, wanted: set[str]) -> None:
        try:
            latest = self._mirror.sync(wanted)
        except CacheFullError as error:
            if not wanted:
                raise
            self._refused |= wanted
            self._wanted -= wanted
            if not self._told_of_room:
                self._on_failure(error)
                self._told_of_room = True
            return
        self._wanted -= wanted
        if self._outbox is not None:
            self._outbox.tend(self._mirror.store, latest)

    def _run(self) -> None:
        ticks = fetched_at = 0
        while not self._closing.wait(_TICK_SECONDS):
            ticks += 1
            fetch = bool(self._wanted) and ticks - fetched_at >= self._ticks_to_gather()
            if ticks % _TICKS_TO_LOOK == 0 or (fetch and not self._is_failing):
                self.round(fetch)
                fetched_at = ticks if fetch else fetched_at
        if self._outbox is not None and not self._is_failing:
            self.round()

    def _ticks_to_gather(self) -> int:
        """Whenever groups have come, the engine opens the pool anew: less often the more there are."""
        return 1 + self._mirror.num_groups_here // _GROUPS_A_TICK
