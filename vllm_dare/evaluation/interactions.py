"""Who liked what, and what the items are: the tables that texts are held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.tables import ITEM_NAMES, USER_NAMES, column_names, pick_column, read_columns, split_values

_LABEL = ("label", "pos", "click", "rating")


@dataclass(frozen=True)
class Columns:
    """The columns of an interaction table; None recognises them by name.

    Attributes:
        user: userID, user_id or user.
        item: itemID, item_id, item, movieID or movie_id.
        label: label, pos, click or rating; 0 and 1.
        time: anything that can be put in order; not read unless named.
    """

    user: str | None = None
    item: str | None = None
    label: str | None = None
    time: str | None = None


@dataclass(frozen=True)
class Items:
    """The items with their attributes.

    Attributes:
        ids: of the items.
        values: the attribute's values, sorted.
        has: bool[items, values].
    """

    ids: Sequence[str]
    values: Sequence[str]
    has: np.ndarray


@dataclass(frozen=True)
class Interactions:
    """The interactions whose item is known, everybody's.

    Attributes:
        users: int64[interactions], the place of the user among the documents; -1 for other users.
        items: int64[interactions], the place of the item.
        labels: float64[interactions], 1 for a positive one.
        times: float64[interactions]; None unless a time column was named.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    times: np.ndarray | None

    @property
    def num_users(self) -> int:
        """Documents that have an interaction."""
        return len(np.unique(self.users[self.users >= 0]))

    def of_documents(self) -> "Interactions":
        """Those of the documents' users alone."""
        mine = self.users >= 0
        times = None if self.times is None else self.times[mine]
        return Interactions(self.users[mine], self.items[mine], self.labels[mine], times)


def read_items(path: Path, attribute: str, id_column: str | None = None) -> Items:
    """Read an item table.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet``.
        attribute: the column with an item's values: separated by ``|``, or a JSON list.
        id_column: None takes item_id, movie_id or the like, or else id.

    Raises:
        DareError: the file cannot be read, or a column is not there.
    """
    names = column_names(path)
    key = pick_column(path, names, "--item-id-column", id_column, (*ITEM_NAMES, "id"))
    pick_column(path, names, "--attribute", attribute, ())
    table = read_columns(path, [key, attribute], texts=[key, attribute])
    ids = [str(value) for value in table[key].to_pylist()]
    lists = [split_values(cell) for cell in table[attribute].to_pylist()]
    values = sorted({value for found in lists for value in found})
    if not values:
        raise DareError(f"The column {attribute!r} of {path} is empty; name another one with --attribute.")
    place = {value: i for i, value in enumerate(values)}
    has = np.zeros((len(ids), len(values)), bool)
    for row, found in enumerate(lists):
        has[row, [place[value] for value in found]] = True
    return Items(ids, values, has)


def read_interactions(
    path: Path, items: Items, document_ids: Sequence[str], columns: Columns, id_prefix: str = ""
) -> Interactions:
    """Read an interaction table.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet``.
        items: interactions with other items are left out.
        document_ids: whom the documents are about.
        columns: see `Columns`.
        id_prefix: what document ids begin with and user ids do not.

    Raises:
        DareError: the file cannot be read, a column is not there, labels are not 0 and 1 or all the same, or
            no user or no item is one of ours.
    """
    names = column_names(path)
    user = pick_column(path, names, "--user-column", columns.user, USER_NAMES)
    item = pick_column(path, names, "--item-column", columns.item, ITEM_NAMES)
    label = pick_column(path, names, "--label-column", columns.label, _LABEL)
    wanted = [user, item, label]
    if columns.time is not None:
        wanted.append(pick_column(path, names, "--time-column", columns.time, ()))
    table = read_columns(path, wanted, texts=[user, item])
    labels = _labels(path, label, table[label])
    item_places = _places(table[item], items.ids)
    if not (item_places >= 0).any():
        raise DareError(f"No item of {path} is in the item table; check that both have the same item ids.")
    users = _places(table[user], [i.removeprefix(id_prefix) for i in document_ids])
    known = item_places >= 0
    if not (users[known] >= 0).any():
        raise DareError(
            f"No user of {path} (such as {table[user][0]}) has a document (such as {document_ids[0]}); give "
            "the interactions of these users, or say with --id-prefix what document ids begin with."
        )
    times = _times(path, columns.time, table[columns.time])[known] if columns.time is not None else None
    found = Interactions(users[known], item_places[known], labels[known], times)
    if len(np.unique(found.of_documents().labels)) < 2:
        raise DareError(
            f"All interactions of these users in {path} have the same {label}; give positive "
            "and negative ones."
        )
    return found


def _labels(path: Path, name: str, column: Any) -> np.ndarray:
    import pyarrow as pa

    try:
        labels = np.asarray(column.cast(pa.float64()).fill_null(np.nan), np.float64)
    except pa.ArrowException:
        labels = np.array([np.nan])
    bad = labels[~np.isin(labels, (0.0, 1.0))]
    if len(bad):
        example = next((v for v in column.to_pylist() if v not in (0, 1)), None)
        raise DareError(
            f"The column {name!r} of {path} holds {example!r}, but a label is 0 or 1: add a column that says "
            "which interactions were liked (such as rating >= 4), and name it with --label-column."
        )
    return labels


def _times(path: Path, name: str, column: Any) -> np.ndarray:
    """Anything that has an order, as numbers."""
    import pyarrow as pa

    if column.null_count:
        raise DareError(f"The column {name!r} of {path} has empty cells; fill them, or split another way.")
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    try:
        return np.asarray(column.cast(pa.float64()), np.float64)
    except pa.ArrowException:
        _, order = np.unique(np.asarray(column.to_pylist(), str), return_inverse=True)
        return order.astype(np.float64)


def _places(column: Any, ids: Sequence[str]) -> np.ndarray:
    """int64[rows]: where each id is in ``ids``; -1 if it is not."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(list(ids), pa.string()))
    return np.asarray(found.fill_null(-1), np.int64)
