"""The right to change a store, which one process has at a time."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from vllm_dare.errors import StoreError
from vllm_dare.store.latest import NAME, Holder, Latest, Replaced, decode
from vllm_dare.store.remote import Store
from vllm_dare.store.swap import swap_of

LEASE_SECONDS = 60.0
# How long the files of a version stay after another one took its place: for engines that serve it still.
GRACE_SECONDS = 24 * 3600.0
_ATTEMPTS = 10


class Lease:
    """Held in a ``with`` block and renewed in the background; runs out if its process dies.

    A process that has lost it, as it was paused for longer than that, cannot `publish`: whoever took the
    lease over has changed the very file that `publish` would replace.

    Args:
        store: what is to be changed.
        seconds: how long others wait for a process that is gone.

    Attributes:
        store: what is to be changed.
        latest: the store's ``latest`` as this process has written it last.
    """

    def __init__(self, store: Store, seconds: float = LEASE_SECONDS) -> None:
        self.latest = Latest()
        self.store = store
        self._swap = swap_of(store)
        self._seconds = seconds
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._tag: str | None = None
        self._renewed_at = 0.0
        self._is_held = self._is_lost = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-dare-lease", daemon=True)

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
            StoreError: another process has it, or the store cannot be written to.
        """
        for _ in range(_ATTEMPTS):
            if self._take():
                self._thread.start()
                return self
        raise StoreError(f"{self.store.url} changes all the time; try again later.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        try:
            self._replace(lambda latest: latest.model_copy(update={"lease": None}))
        except StoreError:  # it runs out by itself
            return

    @property
    def is_safe(self) -> bool:
        """Whether nobody else can have the lease yet, clocks permitting."""
        return not self._is_lost and time.monotonic() - self._renewed_at < self._seconds / 2

    def publish(
        self, manifest: str | None, absorbed: Mapping[str, int], set_aside: Mapping[str, Sequence[int]]
    ) -> None:
        """Make a version count, from one moment to the next; its files must be there.

        Args:
            manifest: the version's name; None where there is none yet.
            absorbed, set_aside: see `Latest`.

        Raises:
            StoreError: the lease is lost, or the store cannot be used, in which case nobody knows whether the
                version counts.
        """
        now = time.time()

        def published(before: Latest) -> Latest:
            young = [
                one for one in before.replaced if one.manifest != manifest and now - one.at < GRACE_SECONDS
            ]
            if before.manifest is not None and before.manifest != manifest:
                young.append(Replaced(manifest=before.manifest, at=now))
            update = {
                "manifest": manifest,
                "absorbed": dict(absorbed),
                "set_aside": {outbox: list(numbers) for outbox, numbers in set_aside.items()},
                "replaced": young,
            }
            return before.model_copy(update=update)

        if not self._replace(published):
            raise StoreError(
                f"Another process has taken over {self.store.url}; nothing was changed, run this again."
            )

    def _take(self) -> bool:
        """Try once.

        Returns:
            Whether the lease was taken; False if another process was quicker.
        """
        found = self._swap.read(NAME)
        self._tag = None if found is None else found.tag
        self.latest = Latest() if found is None else decode(self.store, found.content)
        holder = self.latest.lease
        if holder is not None and holder.expires_at > time.time():
            raise StoreError(
                f"{holder.name} is changing {self.store.url}; try again once it has finished (if it was "
                f"killed: in {holder.expires_at - time.time():.0f} s)."
            )
        self._is_held = self._replace(lambda latest: self._held(latest, latest.number + 1))
        return self._is_held

    def _held(self, latest: Latest, number: int) -> Latest:
        lease = Holder(name=self._name, expires_at=time.time() + self._seconds)
        return latest.model_copy(update={"number": number, "lease": lease})

    def _replace(self, change: Callable[[Latest], Latest]) -> bool:
        """Write ``latest`` anew; False if another process has done so since."""
        with self._lock:
            if self._is_lost:
                return False
            began, latest = time.monotonic(), change(self.latest)
            tag = self._swap.replace(NAME, latest.encode(), self._tag)
            if tag is None:
                self._is_lost = self._is_held
                return False
            self._tag, self.latest, self._renewed_at = tag, latest, began
            return True

    def _run(self) -> None:
        while not self._closing.wait(self._seconds / 4):
            try:
                self._replace(lambda latest: self._held(latest, latest.number))
            except StoreError:  # tried again in time
                continue
