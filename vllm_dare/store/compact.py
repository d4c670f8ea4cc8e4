"""Merging what engines have learned into a store's pool.

A new version and what it has absorbed are published by one replacement of one file, so that wherever a
compactor is killed, a batch is either part of the version that counts, and known to be, or it is neither.
Its file goes afterwards; whatever a killed compactor leaves is removed by a later one.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import prepare_pool
from vllm_dare.pool.merge import least_trusted, pool_content
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.prune import count_tokens
from vllm_dare.pool.refresh import bounded, joined
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.pool.writer import PoolContent, Progress, write_pool
from vllm_dare.store.batch import Batch, read_batch
from vllm_dare.store.cache import cache_root
from vllm_dare.store.collect import collect
from vllm_dare.store.latest import Latest
from vllm_dare.store.lease import LEASE_SECONDS, Lease
from vllm_dare.store.mirror import Mirror
from vllm_dare.store.outbox import SentBatch, sent_batches
from vllm_dare.store.remote import Store
from vllm_dare.store.transfer import fetch_files, present_files, upload_version

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
        num_tokens: of the pool as it is now, each counted once; None if nothing was to be done.
        num_removed: files that nobody needs any more.
    """

    num_batches: int
    num_new: int
    num_replaced: int
    num_foreign: int
    num_tokens: int | None
    num_removed: int


def compact(
    url: str,
    num_tokens: int | None = None,
    *,
    lease_seconds: float = LEASE_SECONDS,
    progress: Progress | None = None,
) -> CompactReport:
    """Merge all learned text that a store has, and remove files that nobody needs any more.

    A document whose id the pool has replaces what is there under that id; of text without an id, the same
    text does, as in `vllm_dare.pool.refresh`. A store without a pool gets one.

    Args:
        url: the store.
        num_tokens: the most tokens to keep, each counted once; the oldest documents go first. None keeps all.
        lease_seconds: how long others wait if this process dies.
        progress: called with the number of tokens sorted so far, and in all.

    Raises:
        PoolError: another process is changing the store, something is damaged, or the store cannot be used.
    """
    store = Store(url)
    with Lease(store, lease_seconds) as lease, _workspace() as directory:
        waiting = [batch for batch in sent_batches(store) if not batch.is_absorbed(lease.latest)]
        if not waiting:
            return CompactReport(0, 0, 0, 0, None, collect(store, lease))
        batches = _fetch(store, [batch.name for batch in waiting], directory)
        mirror = Mirror(url, whole=True)
        try:
            tokenizer = _prepare(mirror, lease.latest, batches)
            ours = [batch for batch in batches if batch.tokenizer.fingerprint == tokenizer.fingerprint]
            with RetrievalPool.open(mirror.pool) as pool:
                pool.verify_checksums()  # or damage would get a checksum of its own in the new version
                content, new, num_replaced = _merged(pool, ours)
                if num_tokens is not None:
                    content = bounded(content, num_tokens)
                    if not count_tokens(content):
                        raise PoolError(
                            f"A budget of {num_tokens:,} tokens leaves no document in {url}; raise it."
                        )
                manifest = write_pool(content, directory / "pool", progress=progress)
            version = upload_version(store, directory / "pool", manifest, present_files(lease))
            lease.publish(version, _absorbed(lease.latest, waiting))
            mirror.adopt(directory / "pool", manifest)
            mirror.sync(latest=lease.latest)
        finally:
            mirror.close()
        return CompactReport(
            num_batches=len(batches),
            num_new=len(new),
            num_replaced=num_replaced,
            num_foreign=_num_documents(batches) - _num_documents(ours),
            num_tokens=count_tokens(content),
            num_removed=collect(store, lease),
        )


def _absorbed(latest: Latest, merged: Sequence[SentBatch]) -> Mapping[str, int]:
    """What the pool has absorbed once these batches are part of it."""
    absorbed = dict(latest.absorbed)
    for batch in merged:
        absorbed[batch.outbox] = max(absorbed.get(batch.outbox, 0), batch.number)
    return absorbed


def _fetch(store: Store, names: Sequence[str], directory: Path) -> list[Batch]:
    """The batches, in the order of their age."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    fetch_files(store, names, directory)
    batches = [read_batch(directory / name) for name in names]
    return sorted(batches, key=lambda batch: batch.created_at)


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
