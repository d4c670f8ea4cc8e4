"""A compact, growing set of row ids: eight bytes each."""

import json
from array import array
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.generation.prompts import RowId, id_key


class HasId(Protocol):
    """A prompt row, or what stands for one."""

    @property
    def id(self) -> RowId: ...


class IdSet:
    """Membership by 64-bit hash, for the ids of one process run.

    Two of ten million ids share a hash with a probability of about 3 in a million.
    """

    def __init__(self, ids: Iterable[RowId] = ()) -> None:
        self._hashes = np.sort(_hashes(ids))

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, row_id: RowId) -> bool:
        value = np.uint64(_hash(row_id))
        index = np.searchsorted(self._hashes, value)
        return bool(index < len(self._hashes) and self._hashes[index] == value)


def check_unique(rows: Iterable[HasId], again: Iterator[HasId], where: str) -> int:
    """Count ``rows`` and refuse an id that occurs twice.

    Args:
        rows: all rows, read once.
        again: the same rows, read a second time only if two hashes are equal.
        where: the file's name for the message.

    Raises:
        DareError: two rows have the same id.
    """
    hashes = _hashes(row.id for row in rows)
    distinct, counts = np.unique(hashes, return_counts=True)
    if len(distinct) == len(hashes):
        return len(hashes)
    suspects = set(distinct[counts > 1].tolist())
    seen: set[str] = set()
    for number, row in enumerate(again, start=1):
        if _hash(row.id) not in suspects:
            continue
        if (key := id_key(row.id)) in seen:
            raise DareError(f"{where}, row {number} repeats the id {json.dumps(row.id)}; ids must be unique.")
        seen.add(key)
    return len(hashes)


def _hash(row_id: RowId) -> int:
    return hash(id_key(row_id)) & 0xFFFF_FFFF_FFFF_FFFF


def _hashes(ids: Iterable[RowId]) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.array(array("Q", (_hash(row_id) for row_id in ids)), dtype=np.uint64)
