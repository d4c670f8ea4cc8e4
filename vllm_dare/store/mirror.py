"""A store's pool as a directory of this node, which engines read like any other pool.

The directory's manifest names fewer groups than the store's: only those somebody asked for. To engines the
others look like groups without text, for which everybody's text drafts; once fetched, they come in as any
newer version of a pool does (`vllm_dare.pool.watch`), so that no look-up ever waits for the network.
"""

import os
from collections.abc import Collection
from pathlib import Path

from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.files import replace_text
from vllm_dare.pool.lock import locked
from vllm_dare.pool.manifest import (
    SEGMENTS_DIRECTORY,
    Manifest,
    is_pool,
    manifest_signature,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from vllm_dare.pool.writer import remove_unread
from vllm_dare.store.cache import Place, make_room
from vllm_dare.store.latest import Latest, files_of, read_latest, read_version
from vllm_dare.store.remote import MANIFESTS, Store
from vllm_dare.store.swap import swap_of
from vllm_dare.store.transfer import Progress, fetch_files


class Mirror:
    """Several processes may have one of the same store; what one has fetched, none fetches again.

    Args:
        url: the store.
        whole: whether to have all groups, in a directory apart from that of who needs some.

    Attributes:
        pool: the pool directory; there is no pool in it before the first `sync`.
        place: where in the cache that is.
        store: the store.
        groups: the names of all groups of the store's pool, as it was at the last `sync`; empty before.
        num_groups_here: how many of them are in the pool directory.
        num_fetched: how many files this process has fetched.

    Raises:
        PoolError: the URL is none, or the cache cannot be written to.
    """

    def __init__(self, url: str, *, whole: bool = False) -> None:
        self.store = Store(url)
        self.place = Place(self.store.url, "whole" if whole else "")
        self.pool = self.place.pool
        self.groups: Collection[str] = frozenset()
        self.num_groups_here = 0
        self.num_fetched = 0
        self._whole = whole
        self._known: tuple[str | None, Manifest] | None = None
        self._synced: tuple[str | None, tuple[int, ...]] | None = None
        self._has_old_files = False

    def sync(
        self, wanted: Collection[str] = (), *, latest: Latest | None = None, progress: Progress | None = None
    ) -> Latest:
        """Fetch the version that counts, as far as it is not here.

        Killed at any moment, this leaves the pool as it was or as it will be.

        Args:
            wanted: groups to have from now on, besides those that are here; unknown ones are left out.
            latest: what counts; None asks the store.
            progress: called with the number of files fetched, and of all that are missing.

        Returns:
            What counts now. If its `manifest` is None, the store has no pool, and nothing was done.

        Raises:
            StoreError: the store cannot be reached.
            CacheFullError: the cache has no room.
            PoolError: what came is damaged, or cannot be written.
        """
        found = latest or read_latest(self.store)
        if found.manifest is None or (not wanted and self._is_here(found.manifest)):
            self._remove_old_files()
            return found
        try:
            with locked(self.place.root):
                # Asked again, or another process's newer version might give way to the one seen above.
                found = latest or read_latest(self.store)
                version = self._version(found.manifest)
                manifest = self._part(version, wanted)
                self.num_groups_here = len(manifest.groups)
                self._fetch(manifest, progress)
                if self._present() != manifest:
                    write_manifest(self.pool, manifest)
                    self._has_old_files = True
                self.groups = version.groups.keys()
                self._synced = found.manifest, manifest_signature(self.pool)
        except OSError as error:
            raise PoolError(
                f"Cannot write to {self.pool} ({error.strerror or error}); check its permissions and space."
            ) from None
        self._remove_old_files()
        return found

    def adopt(self, directory: Path, manifest: Manifest) -> None:
        """Take over the files of a version that was made on this node, so that nobody fetches them."""
        with locked(self.place.root):
            for name in files_of(manifest):
                if not (self.pool / name).exists():
                    os.replace(directory / name, self.pool / name)

    def close(self) -> None:
        """Let others remove what is here."""
        self.place.close()

    def _is_here(self, name: str) -> bool:
        """Whether nothing has changed since the last `sync`, neither in the store nor here."""
        try:
            return self._synced == (name, manifest_signature(self.pool))
        except OSError:
            return False

    def _version(self, name: str | None) -> Manifest:
        """A version with all its groups; fetched once, as it never changes."""
        if self._known is None or self._known[0] != name:
            self._known = name, self._read_version(name)
        return self._known[1]

    def _read_version(self, name: str | None) -> Manifest:
        directory = self.place.root / MANIFESTS
        path = directory / f"{name}.json"
        if path.exists():
            return parse_manifest(str(path), path.read_bytes())
        manifest, content = read_version(self.store, name)
        directory.mkdir(exist_ok=True)
        replace_text(path, content.decode())
        for other in directory.glob("*.json"):
            if other != path:
                other.unlink()
        return manifest

    def _part(self, manifest: Manifest, wanted: Collection[str]) -> Manifest:
        """The version with the groups that are to be here."""
        if self._whole:
            return manifest
        present = self._present()
        kept = {*wanted, *(present.groups if present is not None else ())}
        groups = {name: segments for name, segments in manifest.groups.items() if name in kept}
        used = {*manifest.global_segments, *(name for names in groups.values() for name in names)}
        segments = {name: info for name, info in manifest.segments.items() if name in used}
        return manifest.model_copy(update={"groups": groups, "segments": segments})

    def _present(self) -> Manifest | None:
        try:
            return read_manifest(self.pool) if is_pool(self.pool) else None
        except PoolError:  # damaged: fetched anew
            return None

    def _fetch(self, manifest: Manifest, progress: Progress | None) -> None:
        (self.pool / SEGMENTS_DIRECTORY).mkdir(parents=True, exist_ok=True)
        missing = [name for name in files_of(manifest) if not (self.pool / name).exists()]
        if not missing:
            return
        names = {Path(name).stem for name in missing}
        make_room(sum(info.num_bytes for name, info in manifest.segments.items() if name in names))
        fetch_files(self.store, missing, self.pool, progress)
        self.num_fetched += len(missing)

    def _remove_old_files(self) -> None:
        """Remove what the pool does not need any more, once nobody reads it."""
        if not self._has_old_files:
            return
        try:
            with locked(self.place.root):
                self._has_old_files = remove_unread(self.pool) is None
        except OSError:  # the next change tries again
            return


def open_mirror(url: str, *, learns: bool = False) -> tuple[Mirror, StoreError | None]:
    """The pool of a store, as it is now; where the store cannot be reached, as it was the last time.

    Args:
        url: the store.
        learns: whether what is learned is to go into it, in which case there need not be a pool yet.

    Returns:
        The mirror, and why the store could not be reached.

    Raises:
        PoolError: there is no pool, or nothing is here and the store cannot be reached, or it can only be
            read and is to be learned into.
    """
    mirror = Mirror(url)
    if learns:
        swap_of(mirror.store)
    try:
        latest = mirror.sync()
    except StoreError as error:
        if not is_pool(mirror.pool):
            mirror.close()
            raise
        return mirror, error
    if latest.manifest is None and not learns:
        mirror.close()
        read_version(mirror.store, None)
    return mirror, None
