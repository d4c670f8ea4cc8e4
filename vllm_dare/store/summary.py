"""What a store holds, without fetching its text."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from vllm_dare.errors import StoreError
from vllm_dare.pool.summary import PoolSummary, summarize
from vllm_dare.routing.router_file import RouterFile
from vllm_dare.store.latest import Latest, read_latest, read_version
from vllm_dare.store.outbox import SentBatch, sent_batches
from vllm_dare.store.remote import Store


def summarize_store(url: str) -> tuple[PoolSummary, str]:
    """Sum up the version that counts, and say in a sentence what learned text there is besides.

    Raises:
        PoolError: there is no pool at ``url``, it is damaged, or the store cannot be used.
    """
    store = Store(url)
    latest = read_latest(store)
    waiting = [batch for batch in sent_batches(store) if not batch.is_absorbed(latest)]
    if latest.manifest is None and waiting:
        raise StoreError(
            f"There is no pool at {url} yet, but {len(waiting):,} batches of learned text wait there: make "
            f"it of them with `vllm-dare pool compact {url}`."
        )
    manifest, _ = read_version(store, latest.manifest)
    with tempfile.TemporaryDirectory() as directory:
        routers = [RouterFile.open(store.fetch(name, Path(directory))) for name in manifest.routers]
        pool = summarize(manifest, routers)
    return pool, _learned(waiting, latest)


def _learned(waiting: Sequence[SentBatch], latest: Latest) -> str:
    if not waiting:
        return "No learned text waits to be merged."
    text = f"{len(waiting):,} batches of learned text wait for `vllm-dare pool compact`"
    damaged = sum(batch.number in latest.set_aside.get(batch.outbox, ()) for batch in waiting)
    return f"{text}; {damaged:,} of them could not be read the last time." if damaged else f"{text}."
