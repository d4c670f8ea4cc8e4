"""The table of who belongs to which group, as users write it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import Assignment, EntityKind
from vllm_dare.pool.rows import BadRows, read_rows

_KINDS: tuple[EntityKind, EntityKind] = ("user", "item")


def read_assignments(path: Path) -> Iterator[Assignment]:
    """The (kind, id, group) rows of a CSV, JSONL or Parquet file with the columns user or item, and group.

    Raises:
        PoolError: the file cannot be read, or a row does not say who belongs to which group.
    """
    for source, row in read_rows(path, (*_KINDS, "group"), BadRows()):
        kinds = [kind for kind in _KINDS if _is_id(row.get(kind))]
        if len(kinds) != 1 or not _is_id(row.get("group")):
            raise PoolError(f"{source} is no assignment; give either user or item, and group.")
        yield kinds[0], str(row[kinds[0]]), str(row["group"])


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and value != ""
