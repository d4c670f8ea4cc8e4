"""Who belongs to which group: a memory-mapped table from user or item id to group."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from vllm_dare.errors import PoolError
from vllm_dare.pool.tensor_file import SUFFIX, content_hash, open_tensor_file, write_tensor_file

ASSIGNMENTS_FORMAT_VERSION = 1
ASSIGNMENTS_PREFIX = "assignments-"
_KIND = "assignments"
_LAYOUT = {"hashes": "U64", "group_indices": "I32"}

EntityKind = Literal["user", "item"]
Assignment = tuple[EntityKind, str, str]


class Assignments:
    """A read-only table; `open` maps one, `write_assignments` makes one.

    Ids are kept as 64-bit hashes: among a hundred million, two collide with a probability of 0.03 %, and the
    worst that follows is a draft from a group that fits less well.

    Attributes:
        path: the file.
        group_names: the groups that are assigned to; a pool need not hold text for each.
    """

    def __init__(self, path: Path, group_names: list[str], hashes: np.ndarray, indices: np.ndarray) -> None:
        self.path = path
        self.group_names = group_names
        self._hashes = hashes  # uint64[n], ascending
        self._indices = indices  # int32[n], into group_names

    @classmethod
    def open(cls, path: Path) -> "Assignments":
        """Map a table.

        Raises:
            PoolError: the file is missing, damaged, not such a table, or of a newer format.
        """
        file = open_tensor_file(path, kind=_KIND, version=ASSIGNMENTS_FORMAT_VERSION, layout=_LAYOUT)
        names = _group_names(file.metadata.get("groups", ""))
        hashes, indices = file.tensors["hashes"], file.tensors["group_indices"]
        if names is None or len(hashes) != len(indices):
            raise _damaged(path, "its header is not consistent")
        return cls(path, names, hashes, indices)

    def __len__(self) -> int:
        return len(self._hashes)

    def items(self) -> Iterator[tuple[int, str]]:
        """Every (hash of an id, group name), in ascending order of the hash."""
        for key, index in zip(self._hashes.tolist(), self._indices.tolist(), strict=True):
            yield key, self.group_names[index]

    def group_of(self, kind: EntityKind, entity_id: str | int) -> str | None:
        """The group of a user or item; None if it has none. Takes microseconds.

        Args:
            kind: whether the id is a user's or an item's.
            entity_id: 42 and "42" are the same id.
        """
        key = np.uint64(entity_hash(kind, entity_id))
        place = int(self._hashes.searchsorted(key))
        if place == len(self._hashes) or self._hashes[place] != key:
            return None
        index = int(self._indices[place])
        # A damaged table, which `verify` reports, must not fail a request.
        return self.group_names[index] if 0 <= index < len(self.group_names) else None

    def verify_checksum(self) -> None:
        """Compare the file's content with its name.

        Raises:
            PoolError: they differ.
        """
        if self.path.name != f"{ASSIGNMENTS_PREFIX}{content_hash(self.path)}{SUFFIX}":
            raise _damaged(self.path, "its checksum is not its name")

    def verify(self) -> None:
        """Check the content in full: checksum, order, group indices.

        Raises:
            PoolError: the first thing found wrong.
        """
        self.verify_checksum()
        if (self._hashes[:-1] >= self._hashes[1:]).any():
            raise _damaged(self.path, "its ids are not sorted")
        if len(self) and not (self._indices.min() >= 0 and self._indices.max() < len(self.group_names)):
            raise _damaged(self.path, "it names a group that does not exist")


def entity_hash(kind: EntityKind | Literal["document"], entity_id: str | int) -> int:
    """The 64-bit key of a user, an item, or a document that is of neither; never 0."""
    digest = hashlib.blake2b(f"{kind}:{entity_id}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def document_key(group: str | None, document_id: str) -> int:
    """The 64-bit key by which a pool knows a document.

    It is that of its user or item, or, if its group does not say which of them it is about, of its own kind.
    """
    kinds = kinds_of_group(group or "")
    return entity_hash(kinds[0] if len(kinds) == 1 else "document", document_id)


def kinds_of_group(group: str) -> tuple[EntityKind, ...]:
    """What the id of a document in ``group`` may be: "users/…" and "items/…" tell."""
    if group.startswith("users/"):
        return ("user",)
    if group.startswith("items/"):
        return ("item",)
    return ("user", "item")


def write_assignments(directory: Path, assignments: Iterable[Assignment]) -> Path:
    """Write a table and return its path.

    Args:
        directory: where to; must exist.
        assignments: (kind, id, group name); of two with the same kind and id the later one counts.
    """
    return write_hashed_assignments(directory, ((entity_hash(k, i), group) for k, i, group in assignments))


def write_hashed_assignments(directory: Path, assignments: Iterable[tuple[int, str]]) -> Path:
    """Like `write_assignments`, from (hash of an id, group name) pairs as `Assignments.items` gives them."""
    groups = dict(assignments)
    names = sorted(set(groups.values()))
    index_of = {name: index for index, name in enumerate(names)}
    hashes = np.fromiter(groups.keys(), np.uint64, len(groups))
    indices = np.fromiter((index_of[name] for name in groups.values()), np.int32, len(groups))
    order = np.argsort(hashes)
    tensors: dict[str, np.ndarray] = {"hashes": hashes[order], "group_indices": indices[order]}
    metadata = {"kind": _KIND, "format_version": str(ASSIGNMENTS_FORMAT_VERSION), "groups": json.dumps(names)}
    return write_tensor_file(directory, tensors, metadata, prefix=ASSIGNMENTS_PREFIX)


def _group_names(encoded: str) -> list[str] | None:
    try:
        names = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if valid else None


def _damaged(path: Path, fault: str) -> PoolError:
    return PoolError(f"The assignments {path} are damaged ({fault}); rebuild the pool, or copy it again.")
