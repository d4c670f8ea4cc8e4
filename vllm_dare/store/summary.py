"""What a store holds, without fetching its text."""

import tempfile
from pathlib import Path

from vllm_dare.pool.summary import PoolSummary, summarize
from vllm_dare.routing.router_file import RouterFile
from vllm_dare.store.latest import read_latest, read_version
from vllm_dare.store.outbox import sent_batches
from vllm_dare.store.remote import Store


def summarize_store(url: str) -> tuple[PoolSummary, str]:
    """Sum up the version that counts, and say in a sentence what learned text there is besides.

    Raises:
        PoolError: there is no pool at ``url``, it is damaged, or the store cannot be used.
    """
    store = Store(url)
    latest = read_latest(store)
    manifest, _ = read_version(store, latest.manifest)
    with tempfile.TemporaryDirectory() as directory:
        routers = [RouterFile.open(store.fetch(name, Path(directory))) for name in manifest.routers]
        pool = summarize(manifest, routers)
    waiting = sum(not batch.is_absorbed(latest) for batch in sent_batches(store))
    if not waiting:
        return pool, "No learned text waits to be merged."
    return pool, f"{waiting:,} batches of learned text wait for `vllm-dare pool compact`."
