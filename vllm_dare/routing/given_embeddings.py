"""User embeddings that there are already."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.routing.embeddings import Embeddings, unit_rows
from vllm_dare.routing.interactions import Positives, read_ids
from vllm_dare.tables import USER_NAMES, column_names, pick_column, read_columns, row_place

_EMBEDDING_NAMES = ("embedding", "embeddings", "vector")


@dataclass(frozen=True)
class UserVectors:
    """A table of user embeddings.

    Attributes:
        ids: of the users that have one.
        vectors: float32[users, dimensions], each of length 1.
    """

    ids: Sequence[str]
    vectors: np.ndarray


def read_embeddings(path: Path) -> UserVectors:
    """Read a table of user embeddings. A vector of zeros (shorter than 1e-12) means that there is none.

    Args:
        path: ``.npy``, [users, dimensions], the row being the user's id; or ``.parquet`` with a column user
            and a column embedding of lists of numbers.

    Raises:
        DareError: the file cannot be read or has another shape, a vector is not finite, or a user has two.
    """
    kind = path.name.lower().rsplit(".", 1)[-1]
    if kind == "npy":
        vectors = _read_npy(path)
        ids: Sequence[str] = [str(row) for row in range(len(vectors))]
    elif kind == "parquet":
        ids, vectors = _read_parquet(path)
    else:
        raise DareError(f"Cannot read {path}: embeddings are a .npy or .parquet file.")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        place = f"Row {bad[0]} of {path}" if kind == "npy" else row_place(path, int(bad[0]))
        raise DareError(
            f"{place} (user {ids[bad[0]]}) has an embedding that is not finite; correct it, or "
            "put zeros there."
        )
    vectors = unit_rows(vectors)
    known = np.flatnonzero(vectors.any(axis=1))
    if not len(known):
        raise DareError(f"All embeddings of {path} are zero; give some that are not.")
    return UserVectors([ids[row] for row in known], vectors[known])


def align_embeddings(path: Path, given: UserVectors, positives: Positives) -> tuple[list[str], Embeddings]:
    """Put the users of interactions and those of embeddings together.

    An item's vector is the mean of the embeddings of those who like it.

    Args:
        path: of the embeddings, for messages.
        given: the embeddings.
        positives: the interactions.

    Returns:
        the ids of all users, those with positive interactions first, as they are there; and their embeddings.

    Raises:
        DareError: no user has both.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pa.array(positives.user_ids, pa.string())
    found = pc.index_in(pa.array(given.ids, pa.string()), value_set=known)
    places = np.asarray(found.fill_null(-1), np.int64)
    if not (places >= 0).any():
        raise DareError(
            f"No user of {path} (such as {given.ids[0]}) has positive interactions (as user "
            f"{positives.user_ids[0]} has); check that both have the same user ids."
        )
    new = np.flatnonzero(places < 0)
    places[new] = positives.num_users + np.arange(len(new))
    vectors = np.zeros((positives.num_users + len(new), given.vectors.shape[1]), np.float32)
    vectors[places] = given.vectors
    liked: Any = positives.matrix(len(vectors)).T.tocsr()
    num_known = liked @ vectors.any(axis=1).astype(np.float32)
    items = (liked @ vectors) / np.maximum(num_known, 1)[:, None]
    return [*positives.user_ids, *(given.ids[row] for row in new)], Embeddings(vectors, items)


def _read_npy(path: Path) -> np.ndarray:
    try:
        vectors = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DareError(f"There is no file {path}; check the path.") from None
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DareError(f"Cannot read {path} ({reason}); write it with numpy.save.") from None
    if not isinstance(vectors, np.ndarray):
        raise DareError(f"{path} is an archive of arrays; write one array with numpy.save.")
    if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "fiu":
        shape = f"{vectors.dtype}{list(vectors.shape)}"
        raise DareError(f"{path} is {shape}; give float32[users, dimensions], a row for each user id.")
    with np.errstate(over="ignore"):  # what does not fit is reported as not finite
        return np.asarray(vectors, np.float32)


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    names = column_names(path)
    user = pick_column(path, names, "--user-column", None, USER_NAMES)
    name = pick_column(path, names, "a column called embedding", None, _EMBEDDING_NAMES)
    table = read_columns(path, [user, name], texts=[])
    places, ids = read_ids(path, user, table[user])
    if len(ids) < len(places):
        row = int(np.flatnonzero(places != np.arange(len(places)))[0])
        raise DareError(
            f"{row_place(path, row)} is a second embedding of user {ids[places[row]]}; remove one."
        )
    return ids, _matrix(path, name, table[name])


def _matrix(path: Path, name: str, column: Any) -> np.ndarray:
    """float32[rows, dimensions]"""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    number = kind.value_type if is_list else kind
    if not is_list or not (pa.types.is_floating(number) or pa.types.is_integer(number)):
        raise DareError(f"The column {name!r} of {path} holds {kind}; give lists of numbers.")
    lengths = np.asarray(pc.list_value_length(column).fill_null(0), np.int64)
    wrong = np.flatnonzero(lengths != lengths.max(initial=1))
    if len(wrong):
        raise DareError(
            f"{row_place(path, int(wrong[0]))} has an embedding of {lengths[wrong[0]]} numbers, others have "
            f"{lengths.max()}; give all the same length."
        )
    numbers = column.flatten().cast(pa.float32()).fill_null(float("nan"))
    return np.asarray(numbers, np.float32).reshape(len(column), lengths.max(initial=1))
