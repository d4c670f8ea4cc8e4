"""Replacing a file only if it is still what it was: what single writers rest on.

S3 and what speaks its protocol do so by the headers If-Match and If-None-Match; some servers ignore them, and
are refused. A directory (``file:``) does so under a lock, which holds among the processes of one machine, and
on a shared file system if that has locks. For other stores fsspec offers nothing of the kind.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from vllm_dare.errors import StoreError
from vllm_dare.store.remote import NO_BUCKET, Store, error_code

_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409", "404")
_PROBE = "probe"


class Tagged(NamedTuple):
    """A file's content, and what tells this version of it from every other."""

    content: bytes
    tag: str


class Swap(Protocol):
    """How one kind of store does it."""

    def read(self, name: str) -> Tagged | None:
        """The file; None if there is none."""

    def replace(self, name: str, content: bytes, tag: str | None) -> str | None:
        """Write the file if its tag is still ``tag``, None standing for no file.

        ``content`` must be another one than the file ever had.

        Returns:
            The new tag; None if the file has another one by now.
        """


def swap_of(store: Store) -> Swap:
    """What replaces files in a store.

    Raises:
        StoreError: nothing does.
    """
    if store.protocol == "file":
        return _LocalSwap(store)
    if store.protocol in ("s3", "s3a"):
        return _S3Swap(store)
    raise StoreError(
        f"A pool at {store.protocol}: can be read, but not written to: fsspec has no conditional writes for "
        "it, so that two writers could lose each other's text; write to s3: or file:, and copy from there."
    )


class _S3Swap:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._bucket, self._prefix, _ = store.fs.split_path(store.root)
        self._is_checked = False

    def read(self, name: str) -> Tagged | None:
        from fsspec.asyn import sync

        with self._store.failures():
            try:
                return Tagged(*sync(self._store.fs.loop, self._read, self._key(name)))
            except FileNotFoundError as error:
                if error_code(error) == NO_BUCKET:
                    raise
                return None

    def replace(self, name: str, content: bytes, tag: str | None) -> str | None:
        if not self._is_checked:
            self._check()
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        found = self._put(name, content, condition)
        if found is None:
            # The client sends a request again whose answer got lost, and then meets its own file.
            now = self.read(name)
            return now.tag if now is not None and now.content == content else None
        return found

    def _check(self) -> None:
        """Refuse a server that takes no notice of conditions."""
        if self._put(_PROBE, b"", {"IfMatch": '"never"'}) is not None:
            raise StoreError(
                f"The store {self._store.url} ignores conditional writes (If-Match), so that two writers "
                "could lose each other's text: use a newer server, or another store."
            )
        self._is_checked = True

    def _put(self, name: str, content: bytes, condition: dict[str, str]) -> str | None:
        with self._store.failures():
            try:
                answer = self._store.fs.call_s3(
                    "put_object", Bucket=self._bucket, Key=self._key(name), Body=content, **condition
                )
            except OSError as error:
                if error_code(error) in _LOST:
                    return None
                raise
        return str(answer["ETag"])

    async def _read(self, key: str) -> tuple[bytes, str]:
        answer = await self._store.fs._call_s3("get_object", Bucket=self._bucket, Key=key)
        async with answer["Body"] as body:
            return await body.read(), answer["ETag"]

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}".lstrip("/")


class _LocalSwap:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = Path(store.root)

    def read(self, name: str) -> Tagged | None:
        content = self._store.read(name)
        return None if content is None else Tagged(content, hashlib.sha256(content).hexdigest())

    def replace(self, name: str, content: bytes, tag: str | None) -> str | None:
        with self._store.failures(), self._locked():
            found = self.read(name)
            if (None if found is None else found.tag) != tag:
                return None
            self._store.write(name, content)
        return hashlib.sha256(content).hexdigest()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
