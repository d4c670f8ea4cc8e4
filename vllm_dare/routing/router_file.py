"""``router-<hash>.safetensors``: what turns a history or attributes into a group, memory-mapped."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.tensor_file import (
    SUFFIX,
    content_hash,
    group_names,
    open_tensor_file,
    write_tensor_file,
)

ROUTER_FORMAT_VERSION = 1
ROUTER_PREFIX = "router-"
_KIND = "router"
_LAYOUT = {
    "item_hashes": "U64",
    "attribute_hashes": "U64",
    "attribute_groups": "I32",
    "attribute_ranks": "I32",
    "centroids": "F32",
    "item_vectors": "F32",
    "attribute_scores": "F32",
}

RouterKind = Literal["users", "items"]
Rule = Literal["first", "rarest", "largest"]
RULES: tuple[Rule, ...] = ("first", "rarest", "largest")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class RouterFile:
    """A mapped router of k groups; `write_user_router` and `write_item_router` make one.

    Attributes:
        path: the file.
        kind: "users" (collaborative groups) or "items" (groups of an attribute).
        groups: their names; a pool need not hold text for each.
        centroids: float32[k, d]; [0, 0] in an item router.
        item_hashes: uint64[m], ascending, `entity_hash` of the items that a history may name.
        item_vectors: float32[m, d], in the order of the hashes.
        attribute_hashes: uint64[a], ascending, `attribute_hash` of the known attribute values.
        attribute_scores: float32[a, k] in a user router: what a value adds to each group's score.
        attribute_groups: int32[a] in an item router: the place of a value's group in ``groups``.
        attribute_ranks: int32[a] in an item router: of several values the one of the lowest rank counts,
            and of these the first one given.
        attribute: in an item router, the name of the attribute; "" otherwise.
        rule: in an item router, what the ranks stand for; "" otherwise.
    """

    path: Path
    kind: RouterKind
    groups: Sequence[str]
    centroids: Floats
    item_hashes: Hashes
    item_vectors: Floats
    attribute_hashes: Hashes
    attribute_scores: Floats
    attribute_groups: Ints
    attribute_ranks: Ints
    attribute: str
    rule: str

    @classmethod
    def open(cls, path: Path) -> "RouterFile":
        """Map a router; reads its header only.

        Raises:
            PoolError: the file is missing, damaged, no router, or of a newer format.
        """
        file = open_tensor_file(path, kind=_KIND, version=ROUTER_FORMAT_VERSION, layout=_LAYOUT)
        metadata, tensors = file.metadata, file.tensors
        kind, groups = metadata.get("route"), group_names(metadata)
        dimension = metadata.get("dimension", "")
        if kind not in ("users", "items") or not groups or "" in groups or not _is_count(dimension):
            raise _damaged(path, "its header is not consistent")
        lengths = {name: len(array) for name, array in tensors.items()}
        if lengths != _lengths(kind, len(groups), int(dimension), lengths):
            raise _damaged(path, "the lengths of its arrays disagree")
        return cls(
            path=path,
            kind=kind,  # type: ignore[arg-type]  # checked above
            groups=groups,
            centroids=tensors["centroids"].reshape(-1, int(dimension)),
            item_hashes=tensors["item_hashes"],
            item_vectors=tensors["item_vectors"].reshape(-1, int(dimension)),
            attribute_hashes=tensors["attribute_hashes"],
            attribute_scores=tensors["attribute_scores"].reshape(-1, len(groups)),
            attribute_groups=tensors["attribute_groups"],
            attribute_ranks=tensors["attribute_ranks"],
            attribute=metadata.get("attribute", ""),
            rule=metadata.get("rule", ""),
        )

    def verify_checksum(self) -> None:
        """Compare the file's content with its name.

        Raises:
            PoolError: they differ.
        """
        if self.path.name != f"{ROUTER_PREFIX}{content_hash(self.path)}{SUFFIX}":
            raise _damaged(self.path, "its checksum is not its name")

    def verify(self) -> None:
        """Check the content in full: checksum, order, numbers, group indices.

        Raises:
            PoolError: the first thing found wrong.
        """
        self.verify_checksum()
        for hashes in (self.item_hashes, self.attribute_hashes):
            if (hashes[:-1] >= hashes[1:]).any():
                raise _damaged(self.path, "its ids are not sorted")
        for numbers in (self.centroids, self.item_vectors, self.attribute_scores):
            if not np.isfinite(numbers).all():
                raise _damaged(self.path, "it holds a number that is not finite")
        places = self.attribute_groups
        if len(places) and not (places.min() >= 0 and places.max() < len(self.groups)):
            raise _damaged(self.path, "it names a group that does not exist")


def latest_of_each_kind(files: Iterable[RouterFile]) -> list[RouterFile]:
    """At most one router of each kind; of several the last one."""
    return list({file.kind: file for file in files}.values())


def attribute_hash(key: str) -> int:
    """The 64-bit key of "name=value", or of "" for the prior."""
    digest = blake2b(f"attribute:{key}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def write_user_router(
    directory: Path,
    *,
    groups: Sequence[str],
    centroids: Floats,
    item_ids: Sequence[str],
    item_vectors: Floats,
    attributes: Mapping[str, Floats] | None = None,
) -> Path:
    """Write the router of k collaborative groups and return its path.

    A history goes to the centroid with the largest cosine to the sum of its items' vectors; attributes go to
    the group with the largest sum of scores (naive Bayes).

    Args:
        directory: where to; must exist.
        groups: k names, all different.
        centroids: float32[k, d], any length.
        item_ids: m ids, all different.
        item_vectors: float32[m, d].
        attributes: "name=value" to what it adds to each group's score, float32[k]: log P(value | group), but
            for what is the same for all groups; under the key "" the logarithm of each group's share. None or
            empty: attributes say nothing.

    Raises:
        PoolError: the shapes disagree, a number is not finite, or a group or item is named twice.
    """
    scores = attributes or {}
    num_groups, dimension = len(groups), centroids.shape[-1]
    _check_groups(groups)
    _check_shape("centroids", centroids, (num_groups, dimension))
    _check_shape("item_vectors", item_vectors, (len(item_ids), dimension))
    for key, values in scores.items():
        _check_shape(f"attributes[{key!r}]", values, (num_groups,))
    item_hashes, item_order = _sorted_hashes([entity_hash("item", i) for i in item_ids], "item")
    attribute_hashes, attribute_order = _sorted_hashes([attribute_hash(key) for key in scores], "attribute")
    table = np.array(list(scores.values()), np.float32).reshape(-1, num_groups)
    return _write(
        directory,
        "users",
        groups,
        {
            "item_hashes": item_hashes,
            "attribute_hashes": attribute_hashes,
            "centroids": np.asarray(centroids, np.float32),
            "item_vectors": np.asarray(item_vectors, np.float32)[item_order],
            "attribute_scores": table[attribute_order],
        },
        dimension=str(dimension),
    )


def write_item_router(
    directory: Path,
    *,
    groups: Sequence[str],
    attribute: str,
    values: Mapping[str, str],
    ranks: Mapping[str, int],
    rule: Rule,
) -> Path:
    """Write the router of k groups of an attribute and return its path.

    Args:
        directory: where to; must exist.
        groups: k names, all different.
        attribute: what the attribute is called, such as "genre".
        values: each of its values to its group, one of ``groups``.
        ranks: value to its rank: of an item's values the one with the lowest rank counts, and of these the
            first one given. Values that are not there have rank 0.
        rule: what the ranks stand for, see `vllm_dare.routing.attribute`.

    Raises:
        PoolError: a group is named twice, or a value's group is not one of ``groups``.
    """
    _check_groups(groups)
    place = {group: index for index, group in enumerate(groups)}
    foreign = next((group for group in values.values() if group not in place), None)
    if foreign is not None:
        raise PoolError(f"The router's groups do not include {foreign!r}; add it to them.")
    hashes, order = _sorted_hashes([attribute_hash(f"{attribute}={value}") for value in values], "value")
    return _write(
        directory,
        "items",
        groups,
        {
            "attribute_hashes": hashes,
            "attribute_groups": np.array([place[group] for group in values.values()], np.int32)[order],
            "attribute_ranks": np.array([ranks.get(value, 0) for value in values], np.int32)[order],
        },
        dimension="1",
        attribute=attribute,
        rule=rule,
    )


def _write(
    directory: Path, kind: RouterKind, groups: Sequence[str], arrays: Mapping[str, np.ndarray], **facts: str
) -> Path:
    dtypes = {"U64": np.uint64, "I32": np.int32, "F32": np.float32}
    tensors: dict[str, np.ndarray] = {
        name: arrays[name].ravel() if name in arrays else np.empty(0, dtypes[dtype])
        for name, dtype in _LAYOUT.items()
    }
    metadata = {
        "kind": _KIND,
        "format_version": str(ROUTER_FORMAT_VERSION),
        "route": kind,
        "groups": json.dumps(list(groups)),
        **facts,
    }
    return write_tensor_file(directory, tensors, metadata, prefix=ROUTER_PREFIX)


def _lengths(kind: str, num_groups: int, dimension: int, found: Mapping[str, int]) -> dict[str, int]:
    """The length that each array must have, given how many items and attribute values there are."""
    items, attributes = found["item_hashes"], found["attribute_hashes"]
    users = kind == "users"
    return {
        "item_hashes": items if users else 0,
        "attribute_hashes": attributes,
        "attribute_groups": 0 if users else attributes,
        "attribute_ranks": 0 if users else attributes,
        "centroids": num_groups * dimension if users else 0,
        "item_vectors": items * dimension if users else 0,
        "attribute_scores": attributes * num_groups if users else 0,
    }


def _sorted_hashes(hashes: Sequence[int], what: str) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The hashes in ascending order, and the order that makes them so."""
    array = np.array(hashes, np.uint64)
    order = np.argsort(array)
    array = array[order]
    if (array[:-1] == array[1:]).any():
        raise PoolError(f"The router's {what}s name one of them twice; leave out the duplicates.")
    return array, order


def _check_groups(groups: Sequence[str]) -> None:
    if not groups:
        raise PoolError("A router needs at least one group.")
    repeated = next((a for a, b in pairwise(sorted(groups)) if a == b), None)
    if repeated is not None:
        raise PoolError(f"The router's group {repeated!r} is there twice; give each group a name of its own.")


def _check_shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if np.shape(array) != shape or 0 in shape[1:]:
        raise PoolError(f"The router's {name} have the shape {np.shape(array)}, but {shape} is needed.")
    if not np.isfinite(array).all():
        raise PoolError(f"The router's {name} hold a number that is not finite; mend what they come from.")


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < len(text) < 8 and int(text) > 0


def _damaged(path: Path, fault: str) -> PoolError:
    return PoolError(f"The router {path} is damaged ({fault}); rebuild the pool, or copy it again.")
