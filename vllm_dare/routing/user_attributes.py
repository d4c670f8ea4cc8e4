"""What attributes of a user say about the group: naive Bayes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.routing.interactions import read_ids
from vllm_dare.tables import USER_NAMES, column_names, pick_column, read_columns, row_place

PRIOR = ""
FEWEST_USERS = 10  # that share a value, for it to count
_PRIOR_USERS = 10.0


def attribute_columns(path: Path) -> tuple[str, list[str]]:
    """The column of users, and those of attributes: all others.

    Raises:
        DareError: the file cannot be read, or has no such columns.
    """
    names = column_names(path)
    user = pick_column(path, names, "a column called user", None, USER_NAMES)
    others = [name for name in names if name != user]
    if not others:
        raise DareError(f"{path} has no column but {user!r}; give attributes, such as country.")
    return user, others


def check_attributes(path: Path) -> None:
    """Refuse a table of attributes that `group_log_odds` could not read.

    Raises:
        DareError: the file cannot be read, has no such columns, or has a user twice.
    """
    user, _ = attribute_columns(path)
    _read_users(path, user, read_columns(path, [user], texts=[user])[user])


def group_log_odds(
    path: Path, user_ids: Sequence[str], labels: np.ndarray, num_groups: int
) -> dict[str, np.ndarray]:
    """What each value of each attribute says about the group.

    For a value v that n users have, n_g of them in group g, whose share of all users is p_g:
    log P(g | v) - log p_g with P(g | v) = (n_g + 10 p_g) / (n + 10): ten users more,
    distributed as everybody. Values that fewer than ten users have are left out.

    Args:
        path: a table with a user column and others, whose values are taken as text.
        user_ids: of all users.
        labels: int32[users], the group of each; -1 for none.
        num_groups: how many groups there are, none of them empty.

    Returns:
        "column=value" to float32[groups]; the key "" has the log prior, log p_g.

    Raises:
        DareError: the table cannot be read, has no attributes, has a user twice, or none of its users has a
            group.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    user, others = attribute_columns(path)
    table = read_columns(path, [user, *others], texts=[user, *others])
    rows, ids = _read_users(path, user, table[user])
    place = pc.index_in(pa.array(ids, pa.string()), value_set=pa.array(user_ids, pa.string()))
    group_of = np.append(labels, -1)[np.asarray(place.fill_null(len(labels)), np.int64)]
    groups = group_of[rows]
    if not (groups >= 0).any():
        example = f" (such as {ids[0]})" if ids else ""
        raise DareError(
            f"No user of {path}{example} has a group; check that the interactions have the same ids."
        )
    prior = np.bincount(labels[labels >= 0], minlength=num_groups) / (labels >= 0).sum()
    found = {PRIOR: np.log(prior).astype(np.float32)}
    for name in others:
        codes, values = _values(path, name, table[name])
        use = (codes >= 0) & (groups >= 0)
        counts = np.bincount(
            codes[use] * num_groups + groups[use], minlength=len(values) * num_groups
        ).reshape(len(values), num_groups)
        sizes = counts.sum(axis=1)
        odds = np.log((counts + _PRIOR_USERS * prior) / (sizes[:, None] + _PRIOR_USERS) / prior)
        for row in np.flatnonzero(sizes >= FEWEST_USERS):
            found[f"{name}={values[row]}"] = odds[row].astype(np.float32)
    return found


def _read_users(path: Path, name: str, column: Any) -> tuple[np.ndarray, list[str]]:
    """See `read_ids`; a user may be there only once."""
    rows, ids = read_ids(path, name, column)
    if len(ids) < len(rows):
        # Ids are numbered as they are met: the first row that brings no new one repeats one.
        row = int(np.flatnonzero(rows != np.arange(len(rows)))[0])
        raise DareError(
            f"{row_place(path, row)} has the {name} {ids[rows[row]]} again; give each user one row."
        )
    return rows, ids


def _values(path: Path, name: str, column: Any) -> tuple[np.ndarray, list[str]]:
    """int64[rows], which of the distinct values each row has (-1 for none), and these."""
    import pyarrow as pa

    try:
        encoded = column.cast(pa.string()).dictionary_encode()
    except pa.ArrowException:
        raise DareError(
            f"The column {name!r} of {path} holds {column.type}; an attribute is text or a number."
        ) from None
    values = encoded.dictionary.to_pylist()
    codes = np.asarray(encoded.indices.fill_null(-1), np.int64)
    if "" in values:
        codes[codes == values.index("")] = -1
    return codes, values
