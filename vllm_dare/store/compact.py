"""Merging what engines have learned into a store's pool.

A new version and what it has absorbed are published by one replacement of one file, so that wherever a
compactor is killed, a batch is either part of the version that counts, and known to be, or it is neither.
Its file goes afterwards; whatever a killed compactor leaves is removed by a later one. A batch that cannot be
read, perhaps because it is still on its way, is set aside by the same replacement: no version has absorbed
it, so that it stays, and is tried again each time.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import prepare_pool
from vllm_dare.pool.merge import least_trusted, pool_content
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.prune import count_tokens
from vllm_dare.pool.refresh import bounded, joined
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.threads import run_all
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.pool.writer import PoolContent, Progress, write_pool
from vllm_dare.store.batch import Batch, read_batch
from vllm_dare.store.cache import cache_root
from vllm_dare.store.collect import collect
from vllm_dare.store.latest import NAME, Latest, read_version
from vllm_dare.store.lease import LEASE_SECONDS, Lease
from vllm_dare.store.mirror import Mirror
from vllm_dare.store.outbox import SentBatch, sent_batches
from vllm_dare.store.remote import Store
from vllm_dare.store.transfer import TRANSFERS, present_files, upload_version

# A text of no known id that comes again replaces itself, as in `vllm_dare.pool.refresh`.
_LEAST_TOKENS = 64


@dataclass(frozen=True)
class CompactReport:
    """What became of a store.

    Attributes:
        num_batches: batches that were merged.
        num_new: documents that came in.
        num_replaced: documents that gave way to a newer one of the same id.
        num_foreign: learned documents that were left out for good, as they are of another tokenizer.
        num_cut: tokens of the oldest documents, which went as there were too many.
        num_tokens: of the pool as it is now, each counted once; None if nothing was to be done.
        num_removed: files that nobody needs any more.
        set_aside: files of batches that could not be read, and why; they stay in the store.
    """

    num_batches: int = 0
    num_new: int = 0
    num_replaced: int = 0
    num_foreign: int = 0
    num_cut: int = 0
    num_tokens: int | None = None
    num_removed: int = 0
    set_aside: Mapping[str, str] = field(default_factory=dict)


def compact(
    url: str,
    num_tokens: int | None = None,
    *,
    lease_seconds: float = LEASE_SECONDS,
    progress: Progress | None = None,
) -> CompactReport:
    """Merge all learned text that a store has, and remove files that nobody needs any more.

    A batch that cannot be read is set aside: it stays where it is, and counts as not merged.

    A document whose id the pool has replaces what is there under that id; of text without an id, the same
    text does, as in `vllm_dare.pool.refresh`. A store without a pool gets one.

    Args:
        url: the store.
        num_tokens: the most tokens to keep, each counted once, also where there is nothing to merge; the
            oldest documents go first. None keeps all.
        lease_seconds: how long others wait if this process dies.
        progress: called with the number of tokens sorted so far, and in all.

    Raises:
        PoolError: another process is changing the store, its pool is damaged, or the store cannot be used.
    """
    store = Store(url)
    _check_is_used(store)
    with Lease(store, lease_seconds) as lease, _workspace() as directory:
        waiting = [batch for batch in sent_batches(store) if not batch.is_absorbed(lease.latest)]
        batches, unreadable = _fetch(store, waiting, directory)
        merged = [batch for batch in waiting if batch.name not in unreadable]
        set_aside = _set_aside(lease.latest, waiting, merged)
        if not batches and _fits(store, lease.latest, num_tokens):
            if set_aside != lease.latest.set_aside:
                lease.publish(lease.latest.manifest, lease.latest.absorbed, set_aside)
            return CompactReport(num_removed=collect(store, lease), set_aside=unreadable)
        mirror = Mirror(url, whole=True)
        try:
            tokenizer = _prepare(mirror, lease.latest, batches)
            ours = [batch for batch in batches if batch.tokenizer.fingerprint == tokenizer.fingerprint]
            with RetrievalPool.open(mirror.pool) as pool:
                pool.verify_checksums()  # or damage would get a checksum of its own in the new version
                content, new, num_replaced = _merged(pool, ours)
                num_before = count_tokens(content)
                if num_tokens is not None:
                    content = bounded(content, num_tokens)
                    if not count_tokens(content):
                        raise PoolError(
                            f"A budget of {num_tokens:,} tokens leaves no document in {url}; raise it."
                        )
                manifest = write_pool(content, directory / "pool", progress=progress)
            version = upload_version(store, directory / "pool", manifest, present_files(lease))
            lease.publish(version, _absorbed(lease.latest, merged), set_aside)
            mirror.adopt(directory / "pool", manifest)
            mirror.sync(latest=lease.latest)
        finally:
            mirror.close()
        return CompactReport(
            num_batches=len(batches),
            num_new=len(new),
            num_replaced=num_replaced,
            num_foreign=_num_documents(batches) - _num_documents(ours),
            num_cut=num_before - count_tokens(content),
            num_tokens=count_tokens(content),
            num_removed=collect(store, lease),
            set_aside=unreadable,
        )


def _check_is_used(store: Store) -> None:
    """Refuse a place that nobody has put anything into, rather than begin a store where none is meant.

    Raises:
        StoreError: see above.
    """
    if store.read(NAME) is None and not sent_batches(store):
        raise StoreError(
            f"There is no pool at {store.url} yet, and no learned text: check the URL, or put a pool there "
            "with `vllm-dare pool push`."
        )


def _absorbed(latest: Latest, merged: Sequence[SentBatch]) -> Mapping[str, int]:
    """What the pool has absorbed once these batches are part of it."""
    absorbed = dict(latest.absorbed)
    for batch in merged:
        absorbed[batch.outbox] = max(absorbed.get(batch.outbox, 0), batch.number)
    return absorbed


def _set_aside(
    latest: Latest, waiting: Sequence[SentBatch], merged: Sequence[SentBatch]
) -> dict[str, list[int]]:
    """What the pool has not absorbed once some of the batches that wait are part of it.

    A number stays until its text is merged, even if its file is removed: its node may send it again.
    """
    numbers = {(outbox, number) for outbox, numbers in latest.set_aside.items() for number in numbers}
    numbers |= {(batch.outbox, batch.number) for batch in waiting}
    numbers -= {(batch.outbox, batch.number) for batch in merged}
    set_aside: dict[str, list[int]] = {}
    for outbox, number in sorted(numbers):
        set_aside.setdefault(outbox, []).append(number)
    return set_aside


def _fits(store: Store, latest: Latest, num_tokens: int | None) -> bool:
    """Whether the pool, if there is one, has no more tokens than it may have; its text is not fetched."""
    if num_tokens is None or latest.manifest is None:
        return True
    manifest, _ = read_version(store, latest.manifest)
    groups = [name for names in manifest.groups.values() for name in names]
    return all(
        sum(manifest.segments[name].num_tokens for name in names) <= num_tokens
        for names in (manifest.global_segments, groups)
    )


def _fetch(store: Store, batches: Sequence[SentBatch], directory: Path) -> tuple[list[Batch], dict[str, str]]:
    """The batches that can be read, in the order of their age; the files of the others, and why."""
    unreadable: dict[str, str] = {}

    def fetch(batch: SentBatch) -> Batch | None:
        path = directory / batch.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.fetch(
                batch.name, path.parent, "remove it if the machine that wrote it does not send it again"
            )
            return read_batch(path)
        except StoreError:  # which says nothing of the batch
            raise
        except PoolError as error:
            unreadable[batch.name] = str(error).replace(str(directory), store.url)
            return None

    found = run_all(fetch, batches, done=lambda _: None, workers=TRANSFERS)
    readable = [batch for batch in found if batch is not None]
    return sorted(readable, key=lambda batch: batch.created_at), dict(sorted(unreadable.items()))


def _prepare(mirror: Mirror, latest: Latest, batches: Sequence[Batch]) -> TokenizerInfo:
    """Have the store's pool here, or an empty one if it has none."""
    if mirror.sync(latest=latest).manifest is None:
        shutil.rmtree(mirror.pool, ignore_errors=True)  # of an earlier try
        prepare_pool(mirror.pool, batches[0].tokenizer)
    with RetrievalPool.open(mirror.pool) as pool:
        return pool.tokenizer


def _merged(pool: RetrievalPool, batches: Sequence[Batch]) -> tuple[PoolContent, Sequence[LiveDocument], int]:
    """The content of the pool and the batches; their documents that came in; how many were replaced."""
    has_global = bool(pool.manifest.global_segments)
    newest = [one for one in _newest(batches) if has_global or one.group is not None]
    groups: dict[str, list[PoolDocument]] = {}
    for document in newest:
        if document.group is not None:
            groups.setdefault(document.group, []).append(PoolDocument(document.tokens, document.key))
    old = pool_content([pool])
    new = PoolContent(
        tokenizer=pool.tokenizer,
        groups=groups,
        global_documents=[PoolDocument(one.tokens, one.key) for one in newest] if has_global else None,
        assignments=None,
        provenance=least_trusted({one.provenance for one in newest} or {old.provenance}),
        model=old.model,
    )
    content, num_replaced = joined(old, new)
    return content, newest, num_replaced + _num_documents(batches) - len(newest)


def _num_documents(batches: Sequence[Batch]) -> int:
    return sum(len(batch.documents) for batch in batches)


def _newest(batches: Sequence[Batch]) -> list[LiveDocument]:
    """The documents of all batches, the oldest first, without those that one of a later batch replaces."""
    kept: list[list[LiveDocument]] = []
    seen: set[object] = set()
    for batch in reversed(batches):
        kept.append([one for one in batch.documents if _identity(one) not in seen])
        seen |= {identity for one in batch.documents if (identity := _identity(one)) is not None}
    return [document for documents in reversed(kept) for document in documents]


def _identity(document: LiveDocument) -> object:
    """By what a document is known; None for a short text of nobody, which may well be written twice."""
    if document.key:
        return document.key
    return document.tokens.tobytes() if len(document.tokens) >= _LEAST_TOKENS else None


@contextmanager
def _workspace() -> Iterator[Path]:
    """A directory to work in; those that killed compactors left are removed."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob("compact-*"):
        if time.time() - old.stat().st_mtime > 24 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"compact-{os.getpid()}-", dir=root) as directory:
        yield Path(directory)
