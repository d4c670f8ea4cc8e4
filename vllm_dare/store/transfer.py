"""Whole pools, from a directory to a store and back."""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

from vllm_dare.errors import StoreError
from vllm_dare.pool.lock import changing
from vllm_dare.pool.manifest import (
    MANIFEST_NAME,
    SEGMENTS_DIRECTORY,
    Manifest,
    check_is_pool,
    encode_manifest,
    write_manifest,
)
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tensor_file import NAME_LENGTH, SUFFIX
from vllm_dare.pool.threads import run_all
from vllm_dare.pool.writer import check_output
from vllm_dare.store.latest import files_of, read_latest, read_version, version_file
from vllm_dare.store.lease import Lease
from vllm_dare.store.remote import Store

TRANSFERS = 8  # at a time: a pool of many groups has many small files

Progress = Callable[[int, int], None]


def push_pool(
    directory: Path, url: str, *, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Make a pool directory the version that counts in a store; what was learned into it stays here.

    Args:
        directory: the pool.
        url: the store.
        overwrite: whether a pool that is there may be replaced. Learned text that it contains goes with it;
            what has been sent since stays for the next `compact`. Where it is the same pool, all its files
            are sent again, which mends what is damaged there.
        progress: called with the number of files done, and in all.

    Raises:
        PoolError: the pool is damaged or being changed, there is another one, or the store cannot be used.
    """
    store = Store(url)
    check_is_pool(directory)
    if store.read(MANIFEST_NAME) is not None:
        raise StoreError(f"{url} is a pool directory, not a store; choose another place.")
    with changing(directory), RetrievalPool.open(directory) as pool:
        pool.check_files()
        pool.verify_checksums()
        with Lease(store) as lease:
            if lease.latest.manifest is not None and not overwrite:
                raise StoreError(
                    f"There is a pool at {url} already; choose another place, or give --overwrite."
                )
            # Who pushes what counts already does it because files of it are damaged there.
            is_repair = lease.latest.manifest == version_name(pool.manifest)
            present = () if is_repair else present_files(lease)
            name = upload_version(store, directory, pool.manifest, present, progress)
            lease.publish(name, lease.latest.absorbed, lease.latest.set_aside)
        return pool.manifest


def pull_pool(url: str, output: Path, *, progress: Progress | None = None) -> Manifest:
    """Copy the version that counts into a new directory, which is written whole or not at all.

    Raises:
        PoolError: ``output`` exists, there is no pool at ``url``, or the store cannot be used.
    """
    check_output(output, overwrite=False)
    store = Store(url)
    manifest, _ = read_version(store, read_latest(store).manifest)
    staging = output.absolute().parent / f".{output.absolute().name}.{uuid.uuid4().hex}.tmp"
    try:
        (staging / SEGMENTS_DIRECTORY).mkdir(parents=True)
        fetch_files(store, files_of(manifest), staging, progress)
        write_manifest(staging, manifest)
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def fetch_files(
    store: Store, names: Collection[str], directory: Path, progress: Progress | None = None
) -> None:
    """Fetch a version's files into a pool directory.

    Raises:
        PoolError: one cannot be had.
    """
    num_done = 0

    def fetch(name: str) -> None:
        store.fetch(name, (directory / name).parent)

    def done(_: None) -> None:
        nonlocal num_done
        num_done += 1
        if progress is not None:
            progress(num_done, len(names))

    run_all(fetch, sorted(names), done=done, workers=TRANSFERS)


def present_files(lease: Lease) -> Collection[str]:
    """The files of the version that counts that are there, which nobody removes while this lease is held.

    Others may be there but about to be removed, and are uploaded again.

    Raises:
        PoolError: the version cannot be read.
    """
    if lease.latest.manifest is None:
        return ()
    manifest, _ = read_version(lease.store, lease.latest.manifest)
    sizes = {f"{SEGMENTS_DIRECTORY}/{name}{SUFFIX}": one.num_bytes for name, one in manifest.segments.items()}
    there = {file.name: file.num_bytes for file in lease.store.files()}
    return {
        name for name in files_of(manifest) if name in there and there[name] == sizes.get(name, there[name])
    }


def upload_version(
    store: Store,
    directory: Path,
    manifest: Manifest,
    present: Collection[str],
    progress: Progress | None = None,
) -> str:
    """Upload what a version needs, its manifest last.

    Args:
        store: where to.
        directory: the pool.
        manifest: what it holds.
        present: files that are there.
        progress: called with the number of files done, and in all.

    Returns:
        The version's name.

    Raises:
        StoreError: the store cannot be used.
    """
    missing = sorted(set(files_of(manifest)) - set(present))
    num_done = 0

    def done(_: None) -> None:
        nonlocal num_done
        num_done += 1
        if progress is not None:
            progress(num_done, len(missing))

    run_all(lambda name: store.upload(directory / name, name), missing, done=done, workers=TRANSFERS)
    name = version_name(manifest)
    store.write(version_file(name), encode_manifest(manifest))
    return name


def version_name(manifest: Manifest) -> str:
    """A version's name."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()[:NAME_LENGTH]
