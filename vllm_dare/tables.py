"""CSV and Parquet tables, whole columns at a time."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError

# What columns are called, in any case and with or without underscores.
USER_NAMES = ("userid", "user")
ITEM_NAMES = ("itemid", "item", "movieid", "movie", "bookid", "book", "productid")
WEIGHT_NAMES = ("label", "pos", "click", "rating", "weight", "score", "count")
TIME_NAMES = ("time", "timestamp", "date", "datetime", "unixtime")

_KINDS = (".csv", ".csv.gz", ".parquet")


def column_names(path: Path) -> list[str]:
    """The names of a table's columns.

    Raises:
        DareError: the file cannot be read, or is of another kind.
    """
    import pyarrow.parquet as pq
    from pyarrow import csv

    def read() -> list[str]:
        if path.name.lower().endswith(".parquet"):
            return list(pq.read_schema(path).names)
        with csv.open_csv(path, parse_options=_csv_rules()) as reader:
            return list(reader.schema.names)

    return list(_reading(path, read))


def read_columns(path: Path, names: Sequence[str], texts: Sequence[str] = ()) -> Mapping[str, Any]:
    """Some columns of a table, as pyarrow arrays.

    Args:
        path: a ``.csv``, ``.csv.gz`` or ``.parquet`` file.
        names: the columns, which must be there.
        texts: those of them that are to be strings, whatever they look like.

    Raises:
        DareError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    def read() -> Any:
        if path.name.lower().endswith(".parquet"):
            return pq.read_table(path, columns=list(names))
        convert = csv.ConvertOptions(
            include_columns=list(names), column_types=dict.fromkeys(texts, pa.string())
        )
        return csv.read_csv(path, parse_options=_csv_rules(), convert_options=convert)

    table = _reading(path, read)
    return {name: table[name].combine_chunks() for name in names}


def pick_column(
    path: Path, names: Sequence[str], option: str, wanted: str | None, known: Sequence[str]
) -> str:
    """The column that is meant: the one asked for, or the first of the known names that is there.

    Args:
        path, names: the file and its columns.
        option: the option that names the column, for the message.
        wanted: its value; None looks for the ``known`` names, in any case.

    Raises:
        DareError: there is none, or more than one of that name; the message lists those there are.
    """
    if wanted is not None:
        if wanted not in names:
            raise DareError(f"{path} has no column {wanted!r}; its columns are {', '.join(names)}.")
        found = [name for name in names if name == wanted]
    else:
        found = next((same for one in known if (same := _fitting(names, (one,)))), [])
        if not found:
            raise DareError(
                f"{path} has the columns {', '.join(names)}; say with {option} which one is meant."
            )
    if len(found) > 1:
        raise DareError(
            f"{path} has the columns {' and '.join(found)}; rename or remove all but one of them."
        )
    return found[0]


def check_one_fits(
    path: Path, names: Sequence[str], option: str, wanted: str | None, known: Sequence[str]
) -> None:
    """Refuse a table in which more than one column has a known name, unless somebody says which one is meant.

    Args:
        path, names, option, wanted, known: see `pick_column`.

    Raises:
        DareError: see above; the message lists these columns.
    """
    fitting = _fitting(names, known)
    if wanted is None and len(set(fitting)) > 1:
        raise DareError(
            f"{path} has the columns {' and '.join(fitting)}; say with {option} which one is meant."
        )


def _fitting(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The columns that have one of the known names."""
    return [name for name in names if name.lower().replace("_", "") in known]


def split_values(cell: Any) -> list[str]:
    """The values in one cell: a list, a JSON list, or texts separated by ``|``; empty ones are left out."""
    if cell is None:
        return []
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(ValueError):  # a name that begins with a bracket
            cell = json.loads(cell)
    parts = cell if isinstance(cell, list) else str(cell).split("|")
    return [str(part).strip() for part in parts if part is not None and str(part).strip()]


def row_place(path: Path, row: int) -> str:
    """Where a row stands, for messages: the line of a CSV file, the number of a Parquet row.

    Args:
        path: the table.
        row: its place in the columns, from 0.
    """
    return f"{path}:{row + (1 if path.name.lower().endswith('.parquet') else 2)}"


def find_column(
    path: Path, names: Sequence[str], option: str, wanted: str | None, known: Sequence[str]
) -> str | None:
    """Like `pick_column`, but None where nobody asked for a column and no name is recognised."""
    if wanted is None and not _fitting(names, known):
        return None
    return pick_column(path, names, option, wanted, known)


def _reading(path: Path, read: Any) -> Any:
    import pyarrow as pa

    if not path.name.lower().endswith(_KINDS):
        raise DareError(f"Cannot read {path}: give a {', '.join(_KINDS[:-1])} or {_KINDS[-1]} file.")
    try:
        return read()
    except FileNotFoundError:
        raise DareError(f"There is no file {path}; check the path.") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DareError(f"Cannot read {path} ({reason}); check that the file is complete.") from None


def _csv_rules() -> Any:
    from pyarrow import csv

    return csv.ParseOptions(newlines_in_values=True)  # titles and descriptions may have several lines
