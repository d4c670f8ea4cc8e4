"""``latest``, the only file of a store that changes: which version counts, and who may change it.

All that must change together is in this one file, which is replaced as a whole and only by who knows its
present content (see `vllm_dare.store.swap`): the version, the learned text that it contains already, and the
lease. Whoever takes the lease over thereby makes it impossible for the one before to publish anything.
"""

from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.manifest import Manifest, SegmentName, parse_manifest
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.store.remote import MANIFESTS, Store

NAME = "latest"


class Holder(BaseModel):
    """Who may change the store.

    Attributes:
        name: of one process, no other has the same.
        expires_at: when another one may take over, in seconds since 1970. The clocks of two machines may
            differ: a lease that is taken over too early costs work, no text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    expires_at: float


class Replaced(BaseModel):
    """A version that counted before.

    Attributes:
        manifest: its name.
        at: when another one took its place, in seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: SegmentName
    at: float


class Latest(BaseModel):
    """The content of ``latest``.

    Attributes:
        format_version: 1.
        manifest: the version that counts, ``manifests/<manifest>.json``; None before the first.
        absorbed: for each outbox the number of the last batch of learned text that the version contains; all
            before it are in it, too, but for those that were set aside.
        set_aside: for each outbox the numbers of the batches that could not be read, and are not in the
            version.
        replaced: the versions before, whose files stay for some time.
        number: counts the leases, so that no content of this file ever comes again.
        lease: who may change the store; None if nobody is about to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    manifest: SegmentName | None = None
    absorbed: dict[str, int] = Field(default_factory=dict)
    set_aside: dict[str, list[int]] = Field(default_factory=dict)
    replaced: list[Replaced] = Field(default_factory=list)
    number: int = 0
    lease: Holder | None = None

    def has_absorbed(self, outbox: str, number: int) -> bool:
        """Whether a batch is part of the version."""
        return number <= self.absorbed.get(outbox, 0) and number not in self.set_aside.get(outbox, ())

    def encode(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def decode(store: Store, content: bytes) -> Latest:
    """The file's content.

    Raises:
        StoreError: it is damaged, or of a newer format.
    """
    try:
        return Latest.model_validate_json(content)
    except ValidationError:
        raise StoreError(
            f"{store.url}/{NAME} is damaged or was written by a newer vllm-dare: upgrade vllm-dare, or "
            "remove that file and push the pool again."
        ) from None


def read_latest(store: Store) -> Latest:
    """What counts now; what an empty store has if there is none.

    Raises:
        StoreError: the store cannot be used.
    """
    content = store.read(NAME)
    return Latest() if content is None else decode(store, content)


def read_version(store: Store, name: str | None) -> tuple[Manifest, bytes]:
    """A version, and the bytes it is stored as.

    Raises:
        StoreError: there is none, or the store cannot be used.
        PoolError: it is damaged.
    """
    if name is None:
        raise StoreError(f"There is no pool at {store.url} yet; put one there with `vllm-dare pool push`.")
    content = store.read(version_file(name))
    if content is None:
        raise PoolError(f"{store.url}/{version_file(name)} is missing; push the pool again.")
    return parse_manifest(f"{store.url}/{version_file(name)}", content), content


def version_file(name: str) -> str:
    """Where a version lies."""
    return f"{MANIFESTS}/{name}.json"


def files_of(manifest: Manifest) -> Collection[str]:
    """The files that a version is made of, in the store as in a directory."""
    others = filter(None, (manifest.assignments, *manifest.routers))
    return {*(f"segments/{name}{SUFFIX}" for name in manifest.segments), *others}
