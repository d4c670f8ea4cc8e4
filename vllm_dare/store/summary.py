"""What a store holds, without fetching its text."""

import tempfile
from pathlib import Path

from vllm_dare.pool.summary import PoolSummary, summarize
from vllm_dare.routing.router_file import RouterFile
from vllm_dare.store.latest import read_latest, read_version
from vllm_dare.store.remote import LIVE, Store


def summarize_store(url: str) -> tuple[PoolSummary, str]:
    """Sum up the version that counts, and say in a sentence what learned text there is besides.

    Raises:
        PoolError: there is no pool at ``url``, it is damaged, or the store cannot be used.
    """
    store = Store(url)
    manifest, _ = read_version(store, read_latest(store).manifest)
    with tempfile.TemporaryDirectory() as directory:
        routers = [RouterFile.open(store.fetch(name, Path(directory))) for name in manifest.routers]
        pool = summarize(manifest, routers)
    live = store.files(LIVE)
    num_bytes = sum(file.num_bytes for file in live)
    if not live:
        return pool, "No learned text waits to be merged."
    size = f"{len(live):,} files of learned text ({num_bytes / 1e6:,.1f} MB)"
    return pool, f"{size} are there for `vllm-dare pool compact`."
