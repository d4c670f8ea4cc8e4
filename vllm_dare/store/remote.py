"""Files in an object store, by fsspec: a pool lies there as it does in a directory, but for its manifest.

latest                              what counts, see `vllm_dare.store.latest`; the only file that ever changes
manifests/<content hash>.json       a version of the pool
segments/<content hash>.safetensors
assignments-<content hash>.safetensors, router-<content hash>.safetensors
live/<outbox>/<number>-<content hash>.safetensors   text that engines learned, see `vllm_dare.store.batch`
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_dare.errors import PoolError, StoreError
from vllm_dare.extras import need
from vllm_dare.pool.files import sync
from vllm_dare.pool.tensor_file import content_hash
from vllm_dare.store.location import is_url

MANIFESTS = "manifests"
LIVE = "live"
NO_BUCKET = "NoSuchBucket"

# A request never waits for a store, but a start does.
_S3_OPTIONS = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}},
}


@dataclass(frozen=True)
class StoredFile:
    """What a listing says.

    Attributes:
        name: as in the layout above.
        num_bytes: its size.
        modified: when it was written, in seconds since 1970.
    """

    name: str
    num_bytes: int
    modified: float


class Store:
    """The files under one URL; every failure but a file that is not there is a StoreError.

    Attributes:
        url: as it was given, without a slash at its end.
        protocol: what comes before the colon.
        fs: fsspec's file system.
        root: what its paths begin with.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.protocol = url.split(":", 1)[0]
        if not is_url(url) or not url.split(":", 1)[1].strip("/"):
            raise StoreError(f"{url!r} is not the URL of a store; give s3://bucket/path or file:///path.")
        if self.protocol == "file" and not _is_absolute(self.url):
            raise StoreError(
                f"{url!r} has no absolute path; give one with three slashes, such as file:///mnt/pool."
            )
        fsspec = need("fsspec", "fsspec", "'vllm-dare[store]'")
        options = _S3_OPTIONS if self.protocol in ("s3", "s3a") else {"use_listings_cache": False}
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            reason = str(error).rstrip(".")
            raise StoreError(f"{self.url} needs a package that is not installed: {reason}.") from None
        except ValueError as error:
            raise StoreError(
                f"{self.url} is not the URL of a store ({error}); give s3://…, file:///… or another "
                "that fsspec knows."
            ) from None
        self.root = self.root.rstrip("/")

    def path(self, name: str) -> str:
        """fsspec's path of a file."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """A small file; None if there is none."""
        with self.failures():
            try:
                content: bytes = self.fs.cat_file(self.path(name))
            except FileNotFoundError as error:
                if error_code(error) == NO_BUCKET:
                    raise
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """A small file that is named after its content."""
        with self.failures():
            self._put(name, lambda path: self.fs.pipe_file(path, content))

    def upload(self, file: Path, name: str) -> None:
        """Copy a file there."""
        with self.failures():
            self._put(name, lambda path: self.fs.put_file(str(file), path))

    def fetch(self, name: str, directory: Path, remedy: str = "push the pool again") -> Path:
        """Copy a file whose name ends in its content hash, whole or not at all.

        Args:
            name: in the store.
            directory: where to.
            remedy: what the error says to do if the file is damaged.

        Raises:
            StoreError: it cannot be had.
            PoolError: what came is not what its name says, or it cannot be written.
        """
        target = directory / name.rsplit("/", 1)[-1]
        path = directory / f".{uuid.uuid4().hex}.tmp"
        try:
            with self.failures():
                try:
                    self.fs.get_file(self.path(name), str(path))
                except FileNotFoundError:
                    raise StoreError(f"{self.url}/{name} is missing; push the pool again.") from None
            if content_hash(path) != target.stem.rsplit("-", 1)[-1]:
                raise PoolError(f"{self.url}/{name} is damaged: its checksum is not its name; {remedy}.")
            sync(path)
            os.replace(path, target)
        finally:
            path.unlink(missing_ok=True)
        return target

    def files(self, under: str = "") -> list[StoredFile]:
        """All files, or those in one folder, in the order of their names."""
        with self.failures():
            try:
                found = self.fs.find(self.path(under).rstrip("/"), detail=True)
            except FileNotFoundError:
                return []
        files = [
            StoredFile(path[len(self.root) + 1 :], int(info["size"]), _modified(info))
            for path, info in found.items()
            if not path.rsplit("/", 1)[-1].startswith(".")  # on its way, or a lock
        ]
        return sorted(files, key=lambda file: file.name)

    def remove(self, name: str) -> None:
        """Remove a file; it may have gone already."""
        with self.failures():
            try:
                self.fs.rm_file(self.path(name))
            except FileNotFoundError:
                return

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn whatever a store's client raises into a StoreError."""
        try:
            yield
        except PoolError:
            raise
        except Exception as error:  # clients have many kinds
            text = str(error).strip() or type(error).__name__
            raise StoreError(
                f"The store {self.url} cannot be used ({text.splitlines()[0].rstrip('.')}); check its "
                "address, the credentials and the network."
            ) from error

    def _put(self, name: str, put: Any) -> None:
        """An object appears as a whole; a local file has to be renamed for that."""
        path = self.path(name)
        if self.protocol != "file":
            put(path)
            return
        folder, _, last = path.rpartition("/")
        os.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{uuid.uuid4().hex}.tmp"
        try:
            put(temporary)
            sync(Path(temporary))
            os.replace(temporary, f"{folder}/{last}")
        finally:
            Path(temporary).unlink(missing_ok=True)


def _is_absolute(url: str) -> bool:
    """Whether a file: URL is one of a path from the root: file:/path or file:///path."""
    return not urlsplit(url).netloc and urlsplit(url).path.startswith("/")


def error_code(error: OSError) -> str:
    """What an S3 server called the fault; empty if nothing did."""
    response: Any = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _modified(info: dict[str, Any]) -> float:
    """Clients agree neither on the key nor on the type; without either, the file counts as new."""
    for key in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return float("inf")
