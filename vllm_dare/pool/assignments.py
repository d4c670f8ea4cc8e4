"""Who belongs to which group: a memory-mapped table from user or item id to group."""

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from vllm_dare.errors import PoolError
from vllm_dare.pool.tensor_file import (
    SUFFIX,
    content_hash,
    group_names,
    open_tensor_file,
    write_tensor_file,
)

ASSIGNMENTS_FORMAT_VERSION = 1
ASSIGNMENTS_PREFIX = "assignments-"
_KIND = "assignments"
_BATCH = 2**16
_NEAR = 128  # places either side of a good guess
_NO_GROUP = "it names a group that does not exist"
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
        # Single numbers are read from these in a third of the time that numpy takes.
        self._keys, self._places = hashes.data, indices.data

    @classmethod
    def open(cls, path: Path) -> "Assignments":
        """Map a table.

        Raises:
            PoolError: the file is missing, damaged, not such a table, or of a newer format.
        """
        file = open_tensor_file(path, kind=_KIND, version=ASSIGNMENTS_FORMAT_VERSION, layout=_LAYOUT)
        names = group_names(file.metadata)
        hashes, indices = file.tensors["hashes"], file.tensors["group_indices"]
        if names is None or len(hashes) != len(indices):
            raise _damaged(path, "its header is not consistent")
        return cls(path, names, hashes, indices)

    def __len__(self) -> int:
        return len(self._hashes)

    def items(self) -> Iterator[tuple[int, str]]:
        """Every (hash of an id, group name), in ascending order of the hash.

        Raises:
            PoolError: the table names a group that does not exist.
        """
        for start in range(0, len(self), _BATCH):  # as Python numbers, all would take gigabytes
            batch = slice(start, start + _BATCH)
            for key, index in zip(self._hashes[batch].tolist(), self._indices[batch].tolist(), strict=True):
                if not 0 <= index < len(self.group_names):
                    raise _damaged(self.path, _NO_GROUP)
                yield key, self.group_names[index]

    def group_of(self, kind: EntityKind, entity_id: str | int) -> str | None:
        """The group of a user or item; None if it has none. Takes microseconds.

        Args:
            kind: whether the id is a user's or an item's.
            entity_id: 42 and "42" are the same id.
        """
        key = entity_hash(kind, entity_id)
        place = _place(self._keys, key)
        if place == len(self._keys) or self._keys[place] != key:
            return None
        index = self._places[place]
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
            raise _damaged(self.path, _NO_GROUP)


def entity_hash(kind: EntityKind | Literal["document"], entity_id: str | int) -> int:
    """The 64-bit key of a user, an item, or a document that is of neither; never 0."""
    digest = blake2b(f"{kind}:{entity_id}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def document_key(kinds: tuple[EntityKind, ...], entity_id: str) -> int:
    """The 64-bit key by which a pool knows a document.

    It is that of its user or item, or, if nothing says which of them it is about, of its own kind.

    Args:
        kinds: what the id may be, see `kinds_of_group`.
        entity_id: the id of whom or what the document is about.
    """
    return entity_hash(kinds[0] if len(kinds) == 1 else "document", entity_id)


def kinds_of_group(group: str | None) -> tuple[EntityKind, ...]:
    """What the id of a document in ``group`` may be: "users/…" and "items/…" tell."""
    if group is not None and group.startswith("users/"):
        return ("user",)
    if group is not None and group.startswith("items/"):
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
    """Like `write_assignments`, from (hash of an id, group name) pairs as `Assignments.items` gives them.

    Takes 12 bytes for each pair, and as many again for sorting them.
    """
    keys, numbers = array("Q"), array("i")
    number_of: dict[str, int] = {}
    for key, group in assignments:
        keys.append(key)
        numbers.append(number_of.setdefault(group, len(number_of)))
    hashes, indices = _last_of_each(np.frombuffer(keys, np.uint64), np.frombuffer(numbers, np.int32))
    names = list(number_of)
    used, indices = np.unique(indices, return_inverse=True)
    order = sorted(range(len(used)), key=lambda number: names[used[number]])
    indices = np.argsort(np.array(order, np.int32)).astype(np.int32)[indices]
    tensors: dict[str, np.ndarray] = {"hashes": hashes, "group_indices": indices}
    metadata = {
        "kind": _KIND,
        "format_version": str(ASSIGNMENTS_FORMAT_VERSION),
        "groups": json.dumps([names[used[number]] for number in order]),
    }
    return write_tensor_file(directory, tensors, metadata, prefix=ASSIGNMENTS_PREFIX)


def _last_of_each(hashes: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs in ascending order of the hash; of those with the same hash the last one."""
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    last = np.ones(len(hashes), bool)
    np.not_equal(hashes[:-1], hashes[1:], out=last[:-1])
    return hashes[last], indices[order[last]]


def _place(keys: Sequence[int], key: int) -> int:
    """Where ``key`` stands, or would, among ascending keys.

    Hashes are spread evenly, so that a guess of where one stands is off by about a thousand places in ten
    million, and a second guess, from the key found there, by about 30. A bisection finds the rest, or, where
    keys are not spread evenly, all.
    """
    size = len(keys)
    guess = key * size >> 64
    if guess < size:
        guess += (key - keys[guess]) * size >> 64
    low = guess - _NEAR if guess > _NEAR else 0
    high = guess + _NEAR if guess + _NEAR < size else size
    place = bisect_left(keys, key, low, high)
    return place if low < place < high else bisect_left(keys, key)


def _damaged(path: Path, fault: str) -> PoolError:
    return PoolError(f"The assignments {path} are damaged ({fault}); rebuild the pool, or copy it again.")
