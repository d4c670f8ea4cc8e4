"""Compactors that race, are killed and are paused: is any learned document lost or doubled?

Two processes compact one store as fast as they can, while two nodes send learned text, some of it twice, and
some of it damaged on the way, to be sent again once a compactor has set it aside. In
every round each compactor is killed (SIGKILL) at a random moment, some of them after they were paused
(SIGSTOP) for longer than their lease lasts; then every document that was ever learned must be in the pool
once, or in a batch that is still to be merged, and never in both. At the end one compactor runs to its end,
and the pool must hold exactly what was learned.
"""

import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pytest import MonkeyPatch

from tests.store_server import BUCKET, StoreServer, running_store
from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool import writer
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.manifest import is_pool
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.store.batch import Batch, read_batch
from vllm_dare.store.cache import Place
from vllm_dare.store.compact import compact
from vllm_dare.store.latest import read_latest
from vllm_dare.store.mirror import Mirror
from vllm_dare.store.outbox import Outbox, SentBatch, sent_batches
from vllm_dare.store.remote import Store

INFO = TokenizerInfo(name="numbers", fingerprint="0" * 16, vocab_size=1000)
GROUPS = ("users/a", "users/b", None)
LEASE_SECONDS = 1.0


def compact_for_ever(url: str, environment: dict[str, str], log: str) -> None:
    """What a compactor process does, as long as its parent lives; one line in the log for each try."""
    os.environ.update(environment)
    writer._fit = leave_out_fit  # type: ignore[assignment]
    parent = multiprocessing.parent_process()
    _log(log, "started")
    while parent is not None and parent.is_alive():
        try:
            outcome = "idle" if compact(url, lease_seconds=LEASE_SECONDS).num_tokens is None else "merged"
        except StoreError as error:
            text = str(error)
            outcome = "busy" if "is changing" in text else "lost the lease" if "taken over" in text else text
        _log(log, outcome)
        if outcome in ("busy", "idle"):
            time.sleep(0.02)


def leave_out_fit(*_: Any) -> None:
    """In place of fitting how far contexts are trusted, which takes long and has no part in this."""


def _log(log: str, line: str) -> None:
    with open(log, "a") as file:
        file.write(line + "\n")


def _wait_for(log: Path, line: str, number: int) -> None:
    while not log.exists() or log.read_text().splitlines().count(line) < number:
        time.sleep(0.01)


class Nodes:
    """Two nodes that learn.

    Attributes:
        learned: every document, by its key.
        num_repeated: how many batches were sent twice.
        num_damaged: how many arrived damaged.
    """

    def __init__(self, store: Store, outboxes: Sequence[Outbox], chance: random.Random) -> None:
        self.store = store
        self.learned: Counter[int] = Counter()
        self.num_repeated = self.num_damaged = 0
        self._outboxes = outboxes
        self._chance = chance

    def learn(self, *, may_damage: bool = True) -> None:
        """One batch of some node, sent; some are damaged, or their sender forgets that it has sent them."""
        outbox = self._chance.choice(self._outboxes)
        documents = [self._document() for _ in range(self._chance.randint(1, 4))]
        outbox.add(documents, INFO)
        sent = outbox.directory / "sent"
        before = sent.read_text() if sent.exists() else None
        outbox.tend(self.store, read_latest(self.store))
        if before is not None and self._chance.random() < 0.3:
            sent.write_text(before)  # as if killed before it could note this
            self.num_repeated += 1
        elif may_damage and self._chance.random() < 0.3:
            self._damage(outbox)

    def tend(self) -> None:
        """What nodes do every five seconds."""
        for outbox in self._outboxes:
            outbox.tend(self.store, read_latest(self.store))

    def _damage(self, outbox: Outbox) -> None:
        """Leave half of the last batch, unless it is merged already."""
        path = max(outbox.directory.glob("*.safetensors"))
        name = f"live/{outbox.name}/{path.name}"
        if self.store.read(name) is not None:
            self.store.write(name, path.read_bytes()[: path.stat().st_size // 2])
            self.num_damaged += 1

    def _document(self) -> LiveDocument:
        key = len(self.learned) + 1
        self.learned[key] += 1
        tokens = np.array([key // 10**6, key // 1000 % 1000, key % 1000], np.int32)
        return LiveDocument(tokens, self._chance.choice(GROUPS), "strict", key)

    def waiting(self, directory: Path) -> Counter[int]:
        """The documents of the batches that are in the store and not in its pool."""
        latest = read_latest(self.store)
        keys: Counter[int] = Counter()
        for batch in sent_batches(self.store):
            if not batch.is_absorbed(latest):
                keys.update(document.key for document in self._read(batch, directory).documents)
        return keys

    def _read(self, batch: SentBatch, directory: Path) -> Batch:
        """From its node, if it is damaged in the store."""
        try:
            return read_batch(self.store.fetch(batch.name, directory))
        except StoreError:
            raise
        except PoolError:
            (outbox,) = (one for one in self._outboxes if one.name == batch.outbox)
            return read_batch(outbox.directory / Path(batch.name).name)


def merged(mirror: Mirror) -> Counter[int]:
    """The documents in the pool; everything in it is checked, and that groups hold what is theirs once."""
    mirror.sync()
    if not is_pool(mirror.pool):
        return Counter()
    with RetrievalPool.open(mirror.pool) as pool:
        pool.verify()
        keys = Counter(int(key) for segment in pool.global_segments() for key in segment.document_keys)
        grouped = Counter(
            int(key)
            for name in pool.groups
            for segment in pool.group_segments(name)
            for key in segment.document_keys
        )
        assert not grouped - keys, "a group has text that is not everybody's, or has it twice"
    return keys


def disturb(process: Any, seconds: float, nodes: Nodes, chance: random.Random) -> str:
    """Kill a process at a random moment, perhaps after a pause; says what was done.

    Args:
        process: a compactor.
        seconds: how long a compaction takes.
        nodes: learn during the pause, in which the other compactor can take over, merge and publish.
        chance: what decides.
    """
    time.sleep(chance.uniform(0, seconds))
    paused = chance.random() < 0.4
    if paused:
        os.kill(process.pid, signal.SIGSTOP)
        nodes.learn()
        time.sleep(LEASE_SECONDS + seconds * chance.uniform(0, 2))
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(chance.uniform(0, 2 * seconds))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return "paused" if paused else "killed"


def found(nodes: Nodes, mirror: Mirror, directory: Path) -> tuple[Counter[int], Counter[int]]:
    """The documents that wait to be merged, and those in the pool, at one moment."""
    while True:
        before = read_latest(nodes.store)
        with suppress(StoreError):  # the last request of a killed compactor may still be on its way
            both = nodes.waiting(directory), merged(mirror)
            if read_latest(nodes.store) == before:
                return both


class Race:
    """A store that two compactors race for, nodes that send to it, and one who counts.

    Args:
        server: where the store is.
        directory: for logs and caches.
        seed: of what is left to chance, but for the time that things take.
        patch: undoes what is set here.
    """

    def __init__(self, server: StoreServer, directory: Path, seed: int, patch: MonkeyPatch) -> None:
        self.events: Counter[str] = Counter()
        self._server, self._directory, self._patch = server, directory, patch
        self._chance = random.Random(seed)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.compaction_race", "s3fs.core"])
        self._url = f"s3://{BUCKET}/compaction-{seed}-{time.time_ns()}"
        self._log = directory / "log"
        outboxes = []
        for node in ("node-a", "node-b"):
            patch.setenv(*self._cache(node))
            outboxes.append(Outbox(Place(self._url)))
        self.nodes = Nodes(Store(self._url), outboxes, self._chance)
        patch.setenv(*self._cache("check"))
        self._mirror = Mirror(self._url, whole=True)
        self._num_started = 0
        self.seconds = self._seconds_of_one()

    def round(self) -> None:
        """Let both compactors run, end them at random moments, and count."""
        self.nodes.learn()
        compactors = [self._start(), self._start()]
        self.nodes.learn()
        _wait_for(self._log, "started", self._num_started)
        self.nodes.learn()
        for compactor in self._chance.sample(compactors, 2):
            self.events[disturb(compactor, self.seconds, self.nodes, self._chance)] += 1
        waiting, pool = found(self.nodes, self._mirror, self._directory)
        learned = self.nodes.learned
        assert waiting + pool == learned, f"lost or doubled: {learned} {waiting} {pool}"
        self.events["unfinished"] += bool(waiting)

    def finish(self) -> None:
        """Merge all that is left, and count."""
        time.sleep(LEASE_SECONDS)
        self._patch.setattr(writer, "_fit", leave_out_fit)
        compact(self._url, lease_seconds=LEASE_SECONDS)  # which may set some aside …
        self.nodes.tend()  # … that come again
        compact(self._url, lease_seconds=LEASE_SECONDS)
        assert found(self.nodes, self._mirror, self._directory) == (Counter(), self.nodes.learned)

    def report(self) -> dict[str, Any]:
        """What happened."""
        return {
            "documents learned": len(self.nodes.learned),
            "batches sent twice": self.nodes.num_repeated,
            "batches damaged": self.nodes.num_damaged,
            "compactors killed": self.events["killed"] + self.events["paused"],
            "of these after a pause longer than the lease": self.events["paused"],
            "rounds that left text to merge": self.events["unfinished"],
            "leases taken": read_latest(self.nodes.store).number,
            "seconds that a compaction takes": round(self.seconds, 2),
            "outcomes of tries that were not killed": dict(Counter(self._log.read_text().splitlines())),
            "lost or doubled": 0,
        }

    def _seconds_of_one(self) -> float:
        """How long a compaction takes."""
        self.nodes.learn(may_damage=False)
        compactor = self._start()
        _wait_for(self._log, "started", 1)
        began = time.monotonic()
        _wait_for(self._log, "merged", 1)
        seconds = time.monotonic() - began
        disturb(compactor, 0, self.nodes, self._chance)
        return seconds

    def _start(self) -> Any:
        environment = self._server.environment | dict([self._cache(f"compactor-{self._num_started % 2}")])
        arguments = (self._url, environment, str(self._log))
        process = self._context.Process(target=compact_for_ever, args=arguments)
        process.start()
        self._num_started += 1
        return process

    def _cache(self, name: str) -> tuple[str, str]:
        return "VLLM_DARE_CACHE", str(self._directory / name)


def campaign(rounds: int, seed: int = 0, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Run the rounds on a server of this process.

    Args:
        rounds: how many.
        seed: see `Race`.
        progress: called with the number of rounds that are done.

    Returns:
        What happened.

    Raises:
        AssertionError: a document was lost or doubled.
    """
    with running_store() as server, tempfile.TemporaryDirectory() as root, MonkeyPatch.context() as patch:
        race = Race(server, Path(root), seed, patch)
        for number in range(rounds):
            race.round()
            progress(number + 1)
        race.finish()
        return {"rounds": rounds} | race.report()
