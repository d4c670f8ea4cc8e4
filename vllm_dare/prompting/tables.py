"""The tables that prompts are made from: items, users, and who chose which item when."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.tables import (
    ITEM_NAMES,
    TIME_NAMES,
    USER_NAMES,
    WEIGHT_NAMES,
    column_names,
    find_column,
    pick_column,
    read_columns,
)

_TITLE = ("title", "movietitle", "booktitle", "itemtitle", "name")

_TEXT_CHARACTERS = 60  # values that are longer than this on average are running text
_NO_TITLE = ("", "nan", "NaN")  # the latter two as careless conversions write them
_STARS = 5.0  # the highest rating of those that need no threshold of the caller's
_LIKED_STARS = 4.0
_LABELS = {"true": 1.0, "false": 0.0, "True": 1.0, "False": 0.0}


@dataclass(frozen=True)
class Columns:
    """The columns that are not named as usual; None recognises them by name, in any case.

    Attributes:
        user, item: in the interactions, such as userId and movie_id.
        weight: label, pos, click, rating, weight, score or count; a table may have none.
        time: time, timestamp, date, datetime or unixtime; a table may have none.
        item_id, title: in the item table; an ``item`` column or id, and title or name.
        user_id: in the user table; a ``user`` column or id.
    """

    user: str | None = None
    item: str | None = None
    weight: str | None = None
    time: str | None = None
    item_id: str | None = None
    title: str | None = None
    user_id: str | None = None


@dataclass(frozen=True)
class ItemTable:
    """The items that have a title.

    Attributes:
        ids, titles: of the items; titles are one line each.
        attributes: column to each item's values; every column that is neither id, title nor running text.
        texts: column to each item's text, "" where there is none; columns of running text, that is, with
            values of more than 60 characters on average.
        untitled: the items that were left out because they have no title, as "row 3 (id 17)".
    """

    ids: Sequence[str]
    titles: Sequence[str]
    attributes: Mapping[str, Sequence[tuple[str, ...]]]
    texts: Mapping[str, Sequence[str]]
    untitled: Sequence[str] = ()


@dataclass(frozen=True)
class UserTable:
    """What is known of users besides what they chose.

    Attributes:
        ids: of the users.
        attributes: column to each user's values.
    """

    ids: Sequence[str]
    attributes: Mapping[str, Sequence[tuple[str, ...]]]


@dataclass(frozen=True)
class Interactions:
    """Who chose what: user by user, each user's in the order of time, each item once.

    Attributes:
        user_ids: in the order of their first row.
        starts: int64[users + 1]; the interactions of user u are ``starts[u]`` to ``starts[u + 1]``.
        items: int64[interactions], places in the item table.
        liked: bool[interactions]; None where there are no weights.
        liking: what counts as liking, such as "rating >= 4"; None where there are no weights.
        timed: whether there are times; else the rows' order is that of time.
        unknown: how many rows were left out because their item is not in the item table, or has no title.
        repeated: how many rows gave way to a later one of the same user and item.
    """

    user_ids: Sequence[str]
    starts: np.ndarray
    items: np.ndarray
    liked: np.ndarray | None
    liking: str | None
    timed: bool
    unknown: int
    repeated: int


def read_items(path: Path, columns: Columns) -> ItemTable:
    """Read an item table; rows are counted from 1, without the header.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet``.
        columns: see `Columns`.

    Raises:
        DareError: the file cannot be read, a column or every title is missing, an id is missing or repeated.
    """
    names = _column_names(path)
    key = pick_column(path, names, "--item-id-column", columns.item_id, (*ITEM_NAMES, "id"))
    title = pick_column(path, names, "--title-column", columns.title, _TITLE)
    table, ids = _table_with_ids(path, names, key)
    titles = [_line(value) for value in table[title]]
    kept = [row for row, text in enumerate(titles) if text not in _NO_TITLE]
    if not kept:
        raise DareError(f"No item of {path} has a {title}; name the right column with --title-column.")
    untitled = [f"row {row + 1} (id {ids[row]})" for row in sorted(set(range(len(ids))).difference(kept))]
    others = {name: [table[name][row] for row in kept] for name in names if name not in (key, title)}
    texts = {name for name, cells in others.items() if _is_running_text(cells)}
    return ItemTable(
        ids=[ids[row] for row in kept],
        titles=[titles[row] for row in kept],
        attributes={n: [_values(c) for c in cells] for n, cells in others.items() if n not in texts},
        texts={name: [" ".join(_values(cell)) for cell in others[name]] for name in names if name in texts},
        untitled=untitled,
    )


def read_users(path: Path, columns: Columns) -> UserTable:
    """Read a user table.

    Raises:
        DareError: the file cannot be read, or an id is missing or repeated.
    """
    names = _column_names(path)
    key = pick_column(path, names, "--user-id-column", columns.user_id, (*USER_NAMES, "id"))
    table, ids = _table_with_ids(path, names, key)
    return UserTable(ids, {n: [_values(cell) for cell in table[n]] for n in names if n != key})


def read_interactions(
    path: Path, items: ItemTable, columns: Columns, min_weight: float | None = None
) -> Interactions:
    """Read an interaction table; with a time column, rows may be in any order.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet``.
        items: interactions with other items are counted and left out.
        columns: see `Columns`.
        min_weight: from which weight on an item counts as liked; None takes 1 where weights are 0 and 1, and
            4 where they are ratings (by the column's name) of at most 5.

    Raises:
        DareError: the file cannot be read or has no row, a cell is missing or of no use, no item is in the
            item table, or ``min_weight`` is needed, or of no use.
    """
    names = _column_names(path)
    user = pick_column(path, names, "--user-column", columns.user, USER_NAMES)
    item = pick_column(path, names, "--item-column", columns.item, ITEM_NAMES)
    weight = find_column(path, names, "--weight-column", columns.weight, WEIGHT_NAMES)
    time = find_column(path, names, "--time-column", columns.time, TIME_NAMES)
    if weight is None and min_weight is not None:
        raise DareError(f"{path} has no weights for --min-weight; name their column with --weight-column.")
    # weights as texts, too: a reader that guesses "number" from the first rows may meet 3.5 after many a 3
    texts = [user, item] if weight is None else [user, item, weight]
    table = read_columns(path, texts if time is None else [*texts, time], texts)
    if not len(table[user]):
        raise DareError(f"{path} has no row; give at least one interaction.")
    user_ids, user_places = _encoded(path, user, table[user])
    item_ids, item_codes = _encoded(path, item, table[item])
    place = {item_id: i for i, item_id in enumerate(items.ids)}
    item_places = np.array([place.get(item_id, -1) for item_id in item_ids], np.int64)[item_codes]
    known = item_places >= 0
    if not known.any():
        raise DareError(
            f"No item of {path} (such as {item_ids[0]}) is in the item table (with such as {items.ids[0]}); "
            "check that both have the same item ids."
        )
    liked = liking = None
    if weight is not None:
        weights = _weights(path, weight, table[weight])
        least = _least_liked(path, weight, weights) if min_weight is None else min_weight
        liked, liking = (weights >= least)[known], f"{weight} >= {least:g}"
    times = np.zeros(len(known)) if time is None else _times(path, time, table[time])
    users, chosen = user_places[known], item_places[known]
    order = np.lexsort((times[known], users))  # stable: at the same time, in the order of the rows
    order = order[_last_of_each(users[order], chosen[order])]
    return Interactions(
        user_ids=user_ids,
        starts=np.searchsorted(users[order], np.arange(len(user_ids) + 1)),
        items=chosen[order],
        liked=None if liked is None else liked[order],
        liking=liking,
        timed=time is not None,
        unknown=int((~known).sum()),
        repeated=int(known.sum() - len(order)),
    )


def _column_names(path: Path) -> list[str]:
    names = column_names(path)
    for name in names:
        if names.count(name) > 1:
            raise DareError(f"{path} has two columns {name!r}; rename or remove one of them.")
    return names


def _table_with_ids(path: Path, names: Sequence[str], key: str) -> tuple[dict[str, list[Any]], list[str]]:
    """All columns as lists, and the ids, which must all be there and differ."""
    columns = read_columns(path, names, texts=names)
    table = {name: column.to_pylist() for name, column in columns.items()}
    ids = [_scalar(value) for value in table[key]]
    if not ids:
        raise DareError(f"{path} has no row; give at least one.")
    first: dict[str, int] = {}
    for row, value in enumerate(ids, start=1):
        if not value:
            raise DareError(f"{path}, row {row} has no {key}; fill it, or remove the row.")
        if first.setdefault(value, row) != row:
            raise DareError(
                f"{path}, row {row} repeats the {key} {value!r} of row {first[value]}; ids must be unique."
            )
    return table, ids


def _encoded(path: Path, name: str, column: Any) -> tuple[list[str], np.ndarray]:
    """The distinct ids in the order of their first row, and int64[rows], each row's place among them."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):  # its dictionary may be in any order
        column = column.dictionary_decode()
    encoded = column.dictionary_encode()
    ids = [_scalar(value) for value in encoded.dictionary.to_pylist()]
    codes = np.asarray(encoded.indices.fill_null(-1), np.int64)
    empty = [i for i, value in enumerate(ids) if not value]
    missing = np.flatnonzero(np.isin(codes, [-1, *empty]))
    if len(missing):
        raise DareError(f"{path}, row {missing[0] + 1} has no {name}; fill it, or remove the row.")
    return ids, codes


def _weights(path: Path, name: str, column: Any) -> np.ndarray:
    """float64[rows]."""
    import pyarrow as pa

    try:
        weights = np.asarray(column.cast(pa.float64()).fill_null(math.nan), np.float64)
    except pa.ArrowException:
        weights = np.array([_number(value) for value in column.to_pylist()])
    bad = np.flatnonzero(np.isnan(weights))
    if len(bad):
        raise DareError(
            f"{path}, row {bad[0] + 1} has the {name} {column[int(bad[0])].as_py()!r}, which is no number; "
            "mend it, or remove the row."
        )
    return weights


def _number(value: Any) -> float:
    try:
        return _LABELS[value] if value in _LABELS else float(value)
    except (TypeError, ValueError):
        return math.nan


def _least_liked(path: Path, name: str, weights: np.ndarray) -> float:
    if np.isin(weights, (0.0, 1.0)).all():
        return 1.0
    low, high = float(weights.min()), float(weights.max())
    if "rating" in name.lower() and low >= 0 and 1 < high <= _STARS:
        return _LIKED_STARS
    raise DareError(
        f"The column {name!r} of {path} goes from {low:g} to {high:g}; say with --min-weight from which "
        "value on an item counts as liked."
    )


def _times(path: Path, name: str, column: Any) -> np.ndarray:
    """int64[rows] or float64[rows], in the order of time."""
    import pyarrow as pa

    kind = column.type
    try:
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    except pa.ArrowException:
        row = next(row for row, value in enumerate(column) if not _is_time(value))
        raise DareError(
            f"{path}, row {row + 1} has the {name} {column[row].as_py()!r}, which has no order in time; give "
            "numbers, such as Unix time, or dates as 2024-05-31 12:00:00."
        ) from None
    missing = np.asarray(column.is_null(nan_is_null=True))
    if missing.any():
        raise DareError(f"{path}, row {missing.argmax() + 1} has no {name}; fill it, or remove the row.")
    return np.asarray(column)


def _is_time(value: Any) -> bool:
    import pyarrow as pa

    try:
        value.cast(pa.timestamp("us"), safe=False)
    except pa.ArrowException:
        return False
    return True


def _last_of_each(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The places of each user's last interaction with each item, ascending."""
    keys = users * (int(items.max()) + 1) + items
    _, from_the_end = np.unique(keys[::-1], return_index=True)
    return np.sort(len(keys) - 1 - from_the_end)


def _is_running_text(cells: Sequence[Any]) -> bool:
    lengths = [len(value) for cell in cells for value in _values(cell)]
    return bool(lengths) and sum(lengths) / len(lengths) > _TEXT_CHARACTERS


def _values(cell: Any) -> tuple[str, ...]:
    """The values of a cell: separated by ``|``, a JSON list, or in Parquet a list."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # a name that begins with a bracket
            cell = json.loads(cell)
    parts = cell if isinstance(cell, list) else _scalar(cell).split("|")
    return tuple(dict.fromkeys(text for text in map(_line, parts) if text))


def _line(value: Any) -> str:
    """A value on one line."""
    return " ".join(_scalar(value).split())


def _scalar(value: Any) -> str:
    """A cell as text; whole numbers that Parquet has as floats lose their ``.0``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
