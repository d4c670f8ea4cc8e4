"""Starting from a store: how long until the pool is ready, and what a second engine of the node fetches.

A pool of random text is pushed to an S3 server on loopback. Then processes of their own open it as an engine
does (`vllm_dare.store.mirror.open_mirror`, then `RetrievalPool.open`, and a look at every file): with an
empty cache, with a warm one, two at once, and with the server stopped. Beside the time that the opening takes
stands that of importing the client (s3fs), which a process pays once.

    python -m tests.benchmarks.shared_pool --gigabytes 1
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from pytest import MonkeyPatch

from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.pool.writer import PoolContent, write_pool
from vllm_dare.store.transfer import push_pool

from ..store_server import BUCKET, StoreServer, running_store

ENGINE = """
import json, sys, time
began = time.monotonic()
import s3fs
from vllm_dare.store.mirror import open_mirror
from vllm_dare.pool.pool import RetrievalPool
imported = time.monotonic()
mirror, failure = open_mirror(sys.argv[1])
pool = RetrievalPool.open(mirror.pool)
pool.check_files()
pool.prepare()
ready = time.monotonic()
print(json.dumps([imported - began, ready - imported, mirror.num_fetched, failure is not None]))
"""
_BYTES_A_TOKEN = 8  # on disk
_DOCUMENT = 250
_VOCABULARY = 32000


def write_random_pool(directory: Path, num_bytes: int) -> None:
    """A global segment of about so many bytes and a small group; nobody looks for pivots, for speed."""
    info = TokenizerInfo(name="random", fingerprint="0" * 16, vocab_size=_VOCABULARY)
    count = num_bytes // _BYTES_A_TOKEN // _DOCUMENT
    tokens = np.random.default_rng(0).integers(0, _VOCABULARY, (count, _DOCUMENT), np.int32)
    documents = [PoolDocument(row, key) for key, row in enumerate(tokens, 1)]
    content = PoolContent(
        tokenizer=info,
        groups={"users/a": documents[:1000]},
        global_documents=documents,
        assignments=None,
        provenance="external",
        model=None,
        pivots="",
    )
    write_pool(content, directory)


def start_engines(url: str, number: int, server: StoreServer) -> None:
    """Open the pool in so many processes at once, and print what each says."""
    server.requests.clear()
    command = [sys.executable, "-c", ENGINE, url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    for process in processes:
        imports, seconds, fetched, failed = json.loads(process.communicate()[0])
        print(
            f"  ready after {seconds:.3f} s (imports before: {imports:.2f} s), {fetched} files fetched"
            + (", the store could not be reached" if failed else "")
        )
    gets = sum(count for (method, _), count in server.requests.items() if method == "GET")
    print(f"  the server saw {gets} GET requests, {server.fetched('segments')} of them for segment files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    url = f"s3://{BUCKET}/benchmark"
    with tempfile.TemporaryDirectory() as root, running_store() as server, MonkeyPatch.context() as patch:
        patch.setenv("VLLM_DARE_CACHE", f"{root}/cache")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        write_random_pool(Path(root) / "pool", int(arguments.gigabytes * 1e9))
        size = sum(path.stat().st_size for path in (Path(root) / "pool" / "segments").iterdir())
        push_pool(Path(root) / "pool", url)
        print(f"a pool of {size / 1e9:.2f} GB")
        for what, number in (
            ("an empty cache", 1),
            ("a warm cache", 1),
            ("a warm cache, again", 1),
            ("two at once", 2),
        ):
            print(f"{what}:")
            start_engines(url, number, server)
        server.stop()
        print("the server is stopped:")
        start_engines(url, 1, server)
        server.start()


if __name__ == "__main__":
    main()
