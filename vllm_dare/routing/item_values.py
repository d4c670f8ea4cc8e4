"""The values that an attribute has for each item, as an item table says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError
from vllm_dare.pool.rows import BadRows, read_rows
from vllm_dare.tables import ITEM_NAMES, column_names, pick_column, split_values


@dataclass(frozen=True)
class ItemValues:
    """One item.

    Attributes:
        id: its id; integers are kept as decimal strings.
        values: its values, in the table's order, each once; empty where nothing is known.
    """

    id: str
    values: tuple[str, ...]


def read_item_values(path: Path, attribute: str, id_column: str | None = None) -> list[ItemValues]:
    """Read an item table.

    Args:
        path: ``.csv``, ``.jsonl`` (each also with ``.gz``) or ``.parquet``.
        attribute: the column of the values: lists, JSON lists, or texts separated by ``|``.
        id_column: None takes item_id, movie_id or the like, or else id.

    Raises:
        DareError: the file cannot be read, a column is not there, a row has no id, an item is there twice, or
            there is no value at all.
    """
    names = _column_names(path)
    key = pick_column(path, names, "--item-id-column", id_column, (*ITEM_NAMES, "id"))
    pick_column(path, names, "--attribute", attribute, ())
    items: list[ItemValues] = []
    places: dict[str, str] = {}
    for source, row in read_rows(path, (key, attribute), BadRows()):
        item = _id(source, key, row.get(key))
        if item in places:
            raise DareError(f"{source} has the item {item} of {places[item]} again; leave out one of them.")
        places[item] = source
        items.append(ItemValues(item, tuple(dict.fromkeys(split_values(row.get(attribute))))))
    if not any(item.values for item in items):
        raise DareError(f"The column {attribute!r} of {path} is empty; name another one with --attribute.")
    return items


def _column_names(path: Path) -> list[str]:
    if path.name.lower().removesuffix(".gz").endswith(".jsonl"):
        rows = read_rows(path, (), BadRows())
        return list(dict.fromkeys(name for _, row in rows for name in row))
    return column_names(path)


def _id(source: str, key: str, value: Any) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    raise DareError(f"{source} has no item id in {key!r}, but {value!r}; give a text or a whole number.")
