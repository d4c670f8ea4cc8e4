"""Learned text on its way to the store, so that every text gets into the pool once and only once.

Batches are numbered, and sent in the order of their numbers. The store's pool says for each outbox up to
which number it has absorbed batches (`vllm_dare.store.latest.Latest.absorbed`). So a batch that is sent
twice, because its sender was killed before it could note that it had sent it, is known by its number, even
if its file has been merged and removed in between. Which batches it has not absorbed, as they were damaged,
is said there, too (`set_aside`): these are kept here, and sent again.

    outbox/id               a random name; no other node's outbox has it
    outbox/sent             the number of the last batch that is in the store
    outbox/<number>-<content hash>.safetensors
"""

import fcntl
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vllm_dare.errors import PoolError
from vllm_dare.pool.drop import forget_learned
from vllm_dare.pool.files import replace_text, sync
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import LIVE_DIRECTORY
from vllm_dare.pool.manifest import is_pool
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.store.batch import batch_size, is_intact, read_batch, write_batch
from vllm_dare.store.cache import Place
from vllm_dare.store.latest import Latest
from vllm_dare.store.remote import LIVE, Store

_DIGITS = 12
# Names become paths: this keeps them inside a directory.
_SENT = re.compile(rf"{LIVE}/([0-9a-f]{{32}})/([0-9]{{{_DIGITS}}})-[0-9a-f]{{32}}\.safetensors")
_MAX_BYTES = 2**30  # of batches that wait; while the store cannot be reached for long, the oldest go


@dataclass(frozen=True)
class Unsent:
    """Learned text that waits to be sent.

    Attributes:
        documents, tokens: how many.
        directory: where.
    """

    documents: int
    tokens: int
    directory: str


class Outbox:
    """One node's learned text for one store; its engines share it.

    Args:
        place: the store's directory in the node's cache.

    Attributes:
        directory: where the batches wait.
        name: see the module.

    Raises:
        OSError: it cannot be written to.
    """

    def __init__(self, place: Place) -> None:
        self._live = place.pool / LIVE_DIRECTORY
        self.directory = place.root / "outbox"
        self.directory.mkdir(exist_ok=True)
        self._sent_again: set[int] = set()
        with self._locked():
            name = self.directory / "id"
            if not name.exists():
                replace_text(name, uuid.uuid4().hex)
            self.name = name.read_text()

    def add(self, documents: Sequence[LiveDocument], tokenizer: TokenizerInfo) -> None:
        """Keep texts until they are part of the pool; on disk once this returns.

        Raises:
            OSError: the disk is full, or the directory has gone.
        """
        with self._locked():
            number = max([self._sent(), *map(number_of, self._batches())]) + 1
            write_batch(self.directory, documents, tokenizer, prefix=f"{number:0{_DIGITS}d}-")
            sync(self.directory)
            self._bound()

    def unsent(self) -> Unsent | None:
        """What is not in the store yet; None if nothing is.

        Raises:
            PoolError: what is here is damaged.
        """
        sent = self._sent()
        sizes = [batch_size(path) for path in self._batches() if number_of(path) > sent]
        if not sizes:
            return None
        documents, tokens = map(sum, zip(*sizes, strict=True))
        return Unsent(documents, tokens, str(self.directory))

    def tend(self, store: Store, latest: Latest) -> None:
        """Upload what is not in the store yet, and forget here what has become part of its pool.

        Does nothing while another process is at it.

        Args:
            store: where to.
            latest: its pool, which is here by now: from now on, the text drafts from there.

        Raises:
            StoreError: the store cannot be used; what was sent is noted.
            PoolError: what is here is damaged.
            OSError: it cannot be written to.
        """
        with self._locked("tending", wait=False) as is_mine:
            if is_mine:
                self._settle(latest)
                self._send(store)
                self._send_again(store, latest)

    def _send(self, store: Store) -> None:
        sent = self._sent()
        for path in self._batches():
            if number_of(path) > sent:
                self._upload(store, path)
                self._note_sent(number_of(path))

    def _send_again(self, store: Store, latest: Latest) -> None:
        """Upload what is damaged there and not here; once, as what does not help will not help later."""
        damaged = set(latest.set_aside.get(self.name, ())) - self._sent_again
        for path in self._batches():
            if number_of(path) in damaged and is_intact(path):
                self._upload(store, path)
                self._sent_again.add(number_of(path))

    def _upload(self, store: Store, path: Path) -> None:
        store.upload(path, f"{LIVE}/{self.name}/{path.name}")

    def _settle(self, latest: Latest) -> None:
        done = [path for path in self._batches() if latest.has_absorbed(self.name, number_of(path))]
        if not done:
            return
        # First, or the number would be given again once the files are gone.
        self._note_sent(latest.absorbed[self.name])
        if is_pool(self._live):
            documents = [document for path in done for document in _documents(path)]
            forget_learned(self._live, [PoolDocument(one.tokens, one.key) for one in documents])
        for path in done:
            path.unlink(missing_ok=True)

    def _note_sent(self, number: int) -> None:
        with self._locked():
            if number > self._sent():
                replace_text(self.directory / "sent", str(number))

    def _batches(self) -> list[Path]:
        return sorted(self.directory.glob(f"*{SUFFIX}"))

    def _sent(self) -> int:
        path = self.directory / "sent"
        return int(path.read_text()) if path.exists() else 0

    def _bound(self) -> None:
        """Remove the oldest batches while there are too many."""
        batches = self._batches()
        num_bytes = sum(path.stat().st_size for path in batches)
        for path in batches[:-1]:
            if num_bytes <= _MAX_BYTES:
                return
            num_bytes -= path.stat().st_size
            path.unlink()

    @contextmanager
    def _locked(self, name: str = "lock", *, wait: bool = True) -> Iterator[bool]:
        """Keep other processes out; without waiting, tells whether that could be had."""
        descriptor = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield _lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        finally:
            os.close(descriptor)


def number_of(path: Path) -> int:
    """A batch's number, from its name."""
    return int(path.name[:_DIGITS])


def _documents(path: Path) -> list[LiveDocument]:
    """Of a batch; none of one that is damaged here, which must not hold up the others."""
    try:
        return read_batch(path).documents
    except PoolError:
        return []


class SentBatch(NamedTuple):
    """A batch in a store.

    Attributes:
        name: of the file.
        outbox: where it comes from.
        number: its number there.
    """

    name: str
    outbox: str
    number: int

    def is_absorbed(self, latest: Latest) -> bool:
        """Whether it is part of the pool."""
        return latest.has_absorbed(self.outbox, self.number)


def sent_batches(store: Store) -> list[SentBatch]:
    """The batches in a store; other files that lie there are left alone.

    Raises:
        StoreError: the store cannot be used.
    """
    found = [_SENT.fullmatch(file.name) for file in store.files(LIVE)]
    return [SentBatch(match[0], match[1], int(match[2])) for match in found if match is not None]


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    return True
