"""Newer versions of a pool, opened in the background while the old one serves."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from vllm_dare.errors import PoolError
from vllm_dare.pool.manifest import manifest_signature, read_manifest
from vllm_dare.pool.pool import RetrievalPool

_LOOK_SECONDS = 1.0
_NICENESS = 19
_RETRY_SECONDS = 30.0  # a version that cannot be used is tried again: a copy may still be on its way


class PoolWatch:
    """Looks about once a second whether a pool's manifest was replaced, and opens the pool that it names.

    A version that is damaged, or of another tokenizer, is not served: `on_failure` is told once, and the
    version before goes on.

    Args:
        pool: what is served now.
        verify: whether to read every segment and compare its checksum first, in one thread.
        make_room: called, in the background, with a version that is about to be ready.
        on_failure: called, in the background, with what is wrong with a version.
    """

    def __init__(
        self,
        pool: RetrievalPool,
        *,
        verify: bool,
        make_room: Callable[[RetrievalPool], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._directory = pool.directory
        self._newest = pool
        self._verify = verify
        self._make_room = make_room
        self._on_failure = on_failure
        self._seen: tuple[int, ...] | None = None
        self._refused: tuple[int, ...] | None = None
        self._rounds_to_retry = 0
        self._ready: RetrievalPool | None = None
        self._closing = threading.Event()
        self._on_look: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="vllm-dare-pool-watch", daemon=True)

    def start(self, on_look: Callable[[], None]) -> None:
        """Begin to look; ``on_look`` is called after every round, in the background."""
        self._on_look = on_look
        self._thread.start()

    def close(self) -> None:
        """End the background work."""
        self._closing.set()

    def take(self) -> RetrievalPool | None:
        """The newest version, once, if it is another one than was served so far; takes no time."""
        ready, self._ready = self._ready, None
        return ready

    def look(self) -> None:
        """One round: open the pool if its manifest is not the one seen last."""
        try:
            seen = manifest_signature(self._directory)
        except OSError:  # removed, or being replaced: what is mapped goes on serving
            return
        if seen == self._seen or (seen == self._refused and self._waits()):
            return
        try:
            self._open()
            self._seen, self._refused = seen, None
        except Exception as error:  # of any kind: it must not end the thread unnoticed
            if seen != self._refused:
                self._on_failure(error)
            self._refused, self._rounds_to_retry = seen, int(_RETRY_SECONDS / _LOOK_SECONDS)

    def _waits(self) -> bool:
        self._rounds_to_retry -= 1
        return self._rounds_to_retry > 0

    def _open(self) -> None:
        if read_manifest(self._directory) == self._newest.manifest:
            return
        pool = RetrievalPool.open(self._directory)
        try:
            pool.check_tokenizer(self._newest.tokenizer.name, self._newest.tokenizer.fingerprint)
            self._check_kind(pool)
            pool.check_files()
            if self._verify:
                pool.verify_checksums(workers=1)
                pool.map_in()  # all of it has just been read
            pool.prepare()
            self._make_room(pool)
        except BaseException:
            pool.close()
            raise
        self._newest = self._ready = pool

    def _check_kind(self, pool: RetrievalPool) -> None:
        has_global = bool(pool.manifest.global_segments)
        if has_global != bool(self._newest.manifest.global_segments):
            raise PoolError(
                f"The pool {pool.directory} {'has' if has_global else 'lacks'} a global segment, unlike the "
                "version before: restart the engine, since what was learned is kept apart or shared "
                "accordingly."
            )

    def _run(self) -> None:
        # Reading a large pool would otherwise take a core from the steps. On Linux, a thread has its own.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._closing.wait(_LOOK_SECONDS):
            self.look()
            self._on_look()
