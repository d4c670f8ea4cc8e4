"""Who liked what: an interaction table, read whole columns at a time."""

from collections.abc import Sequence
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
    check_one_fits,
    column_names,
    find_column,
    pick_column,
    read_columns,
    row_place,
)


@dataclass(frozen=True)
class Columns:
    """The columns of an interaction table; None recognises them by name, in any case and with or without _.

    Where several columns of a table would be recognised, one has to be named.

    Attributes:
        user: user or userID.
        item: item, itemID, movie, movieID, book, bookID or productID.
        weight: label, pos, click, rating, weight, score or count; a table may have none.
        time: time, timestamp, date, datetime or unixtime; a table may have none.
    """

    user: str | None = None
    item: str | None = None
    weight: str | None = None
    time: str | None = None


@dataclass(frozen=True)
class Positives:
    """The positive interactions, each (user, item) pair once, sorted by user and then item.

    Attributes:
        user_ids: of all users that have one, in the order in which they were met.
        item_ids: of all items that have one.
        users: int32[pairs], places in user_ids.
        items: int32[pairs], places in item_ids.
        times: float64[pairs], when the pair was first met; None if the table has no times.
        num_rows: of the table.
        num_negative: rows that are not positive.
        num_repeated: positive rows whose pair was there already.
        num_users_without: users with no positive interaction.
    """

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    num_rows: int
    num_negative: int
    num_repeated: int
    num_users_without: int

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def matrix(self, num_users: int | None = None) -> Any:
        """Users by items, a scipy CSR matrix of float32 ones.

        Args:
            num_users: rows; those beyond the users with interactions are empty.
        """
        from scipy.sparse import csr_matrix

        rows = self.num_users if num_users is None else num_users
        starts = np.searchsorted(self.users, np.arange(rows + 1)).astype(np.int32)
        ones = np.ones(len(self.items), np.float32)
        return csr_matrix((ones, self.items, starts), (rows, self.num_items))


def read_positives(path: Path, columns: Columns, min_weight: float | None = None) -> Positives:
    """Read an interaction table and keep what is positive.

    A weight of 0 or 1 is a label: 1 is positive. Other weights need ``min_weight``. Without a weight column
    every row is positive.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet``; ids are whole numbers or text, 42 and "42" the same.
        columns: see `Columns`.
        min_weight: from which weight on a row is positive.

    Raises:
        DareError: the file cannot be read, a column is not there, two may be meant, a row has no id or no
            weight, or nothing is positive.
    """
    names = column_names(path)
    for option, wanted_name, known in (
        ("--user-column", columns.user, USER_NAMES),
        ("--item-column", columns.item, ITEM_NAMES),
        ("--weight-column", columns.weight, WEIGHT_NAMES),
        ("--time-column", columns.time, TIME_NAMES),
    ):
        check_one_fits(path, names, option, wanted_name, known)
    user = pick_column(path, names, "--user-column", columns.user, USER_NAMES)
    item = pick_column(path, names, "--item-column", columns.item, ITEM_NAMES)
    weight = find_column(path, names, "--weight-column", columns.weight, WEIGHT_NAMES)
    time = find_column(path, names, "--time-column", columns.time, TIME_NAMES)
    if weight is None and min_weight is not None:
        raise DareError(f"{path} has no weights for --min-weight; name their column with --weight-column.")
    # All as text: a reader that takes weights for whole numbers may meet 3.5 after many a 3.
    wanted = [name for name in (user, item, weight, time) if name is not None]
    table = read_columns(path, wanted, texts=wanted)
    num_rows = len(table[user])
    if not num_rows:
        raise DareError(f"{path} has no rows; give interactions of users with items.")
    users, user_ids = read_ids(path, user, table[user])
    items, item_ids = read_ids(path, item, table[item])
    keep = np.ones(num_rows, bool)
    if weight is not None:
        keep = _is_positive(path, weight, table[weight], min_weight)
    if not keep.any():
        raise DareError(f"No interaction of {path} is positive; {_advice(weight, min_weight)}.")
    times = None if time is None else _times(path, time, table[time])[keep]
    pairs, times = _distinct(users[keep].astype(np.int64) * len(item_ids) + items[keep], times)
    user_places, liking_ids = _only_used(pairs // len(item_ids), user_ids)
    item_places, liked_ids = _only_used(pairs % len(item_ids), item_ids)
    num_positive = int(keep.sum())
    return Positives(
        user_ids=liking_ids,
        item_ids=liked_ids,
        users=user_places,
        items=item_places,
        times=times,
        num_rows=num_rows,
        num_negative=num_rows - num_positive,
        num_repeated=num_positive - len(pairs),
        num_users_without=len(user_ids) - len(liking_ids),
    )


def read_ids(path: Path, name: str, column: Any) -> tuple[np.ndarray, list[str]]:
    """A column of ids.

    Args:
        path, name: the file and the column, for messages.
        column: a pyarrow array, as `read_columns` gives it.

    Returns:
        int32[rows], places in the list of distinct ids, which are in the order in which they are met.

    Raises:
        DareError: a row has no id, or ids are neither whole numbers nor text.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = _whole(path, name, column)
    elif not (_is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise DareError(
            f"The column {name!r} of {path} holds {column.type}, but an id is a whole number or "
            "text; convert it."
        )
    _check_complete(path, name, column)
    encoded = column.dictionary_encode()
    return np.asarray(encoded.indices, np.int32), [str(value) for value in encoded.dictionary.to_pylist()]


def _check_complete(path: Path, name: str, column: Any) -> None:
    """Refuse a column with an empty cell."""
    import pyarrow.compute as pc

    missing = pc.is_null(column)
    if _is_text(column.type):
        missing = pc.or_(missing, pc.equal(pc.fill_null(column, ""), ""))
    row = pc.index(missing, True).as_py()
    if row >= 0:
        raise DareError(f"{row_place(path, row)} has no {name}; remove the row, or complete it.")


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _whole(path: Path, name: str, column: Any) -> Any:
    """Ids that a tool has made 42.0, as whole numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fine = pc.fill_null(pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2**53)), True)
    row = pc.index(fine, False).as_py()
    if row >= 0:
        raise DareError(
            f"{row_place(path, row)} has the {name} {column[row].as_py()}, but an id is a whole number or "
            "text; correct it."
        )
    return column.cast(pa.int64())


def _is_positive(path: Path, name: str, column: Any, min_weight: float | None) -> np.ndarray:
    """bool[rows]"""
    weights = _numbers(path, name, column)
    if min_weight is not None:
        return np.asarray(weights >= min_weight)
    strange = np.flatnonzero((weights != 0) & (weights != 1))
    if len(strange):
        raise DareError(
            f"{row_place(path, int(strange[0]))} has the {name} {weights[strange[0]]:g}, which is no label "
            "of 0 or 1; say with --min-weight from which value on an interaction is positive, such as "
            "--min-weight 4."
        )
    return np.asarray(weights == 1)


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """float64[rows]; words for true and false are 1 and 0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _check_complete(path, name, column)
    encoded = column.dictionary_encode()
    values = encoded.dictionary
    if _is_text(values.type):
        lower = pc.utf8_lower(values)
        values = pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", values))
    try:
        numbers = np.asarray(values.cast(pa.float64()), np.float64)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DareError(f"The column {name!r} of {path} is not numbers ({reason}); correct it.") from None
    numbers = numbers[np.asarray(encoded.indices)]
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        place = row_place(path, int(bad[0]))
        raise DareError(f"{place} has no number as {name}; remove the row, or complete it.")
    return np.asarray(numbers)


def _times(path: Path, name: str, column: Any) -> np.ndarray:
    """float64[rows], in the order of the column's numbers or dates."""
    import pyarrow as pa

    _check_complete(path, name, column)
    try:
        if pa.types.is_temporal(column.type):
            column = column.cast(pa.timestamp("us"))
        else:
            with suppress(pa.ArrowException):
                return np.asarray(column.cast(pa.float64()), np.float64)
            column = column.cast(pa.timestamp("us"))
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DareError(
            f"The column {name!r} of {path} is neither numbers nor dates such as 2024-05-31 12:00:00 "
            f"({reason}); correct it."
        ) from None
    return np.asarray(column.cast(pa.int64()), np.float64)


def _advice(weight: str | None, min_weight: float | None) -> str:
    if min_weight is not None:
        return f"no {weight} reaches --min-weight {min_weight:g}: lower it"
    return f"every {weight} is 0: give what users liked, too"


def _distinct(pairs: np.ndarray, times: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The distinct pairs, sorted, and when each was first met."""
    if times is None:
        return np.unique(pairs), None
    order = np.lexsort((times, pairs))
    pairs, times = pairs[order], times[order]
    first = np.ones(len(pairs), bool)
    first[1:] = pairs[1:] != pairs[:-1]
    return pairs[first], times[first]


def _only_used(places: np.ndarray, ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The ids that are used, in their order, and int32 places among them."""
    used = np.zeros(len(ids), bool)
    used[places] = True
    new_place = np.cumsum(used, dtype=np.int32) - 1
    return new_place[places], [ids[place] for place in np.flatnonzero(used)]
