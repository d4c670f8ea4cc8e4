"""Removing files from a store that nobody needs any more."""

import time

from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.manifest import SEGMENTS_DIRECTORY
from vllm_dare.store.latest import Latest, files_of, read_version, version_file
from vllm_dare.store.lease import GRACE_SECONDS, Lease
from vllm_dare.store.outbox import sent_batches
from vllm_dare.store.remote import MANIFESTS, Store

_OWN_FOLDERS = (SEGMENTS_DIRECTORY, MANIFESTS)
_OWN_PREFIXES = ("assignments-", "router-")


def collect(store: Store, lease: Lease) -> int:
    """Remove learned text that is part of the pool, and what only old versions need.

    What was uploaded or was part of the version that counted less than a day ago stays: an engine may still
    serve it. Files that are not of a pool's kinds stay, too.

    Returns:
        How many files went.

    Raises:
        PoolError: a version cannot be read, or the store cannot be used.
    """
    latest = lease.latest
    absorbed = [batch.name for batch in sent_batches(store) if batch.is_absorbed(latest)]
    kept = _needed(store, latest)
    old = [
        file.name
        for file in store.files()
        if _is_own(file.name) and file.name not in kept and time.time() - file.modified > GRACE_SECONDS
    ]
    num_removed = 0
    for name in (*absorbed, *old):
        # Whoever has the lease next uploads what it needs and does not see in the version that counts.
        if not lease.is_safe:
            break
        store.remove(name)
        num_removed += 1
    return num_removed


def _needed(store: Store, latest: Latest) -> set[str]:
    """The files of the version that counts and of those before that somebody may still serve."""
    young = [one.manifest for one in latest.replaced if time.time() - one.at < GRACE_SECONDS]
    needed: set[str] = set()
    for name in filter(None, (latest.manifest, *young)):
        try:
            manifest, _ = read_version(store, name)
        except StoreError:
            raise
        except PoolError:
            if name == latest.manifest:
                raise
            continue  # a version before, which somebody has removed by hand
        needed |= {version_file(name), *files_of(manifest)}
    return needed


def _is_own(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    return folder in _OWN_FOLDERS or (not folder and last.startswith(_OWN_PREFIXES))
