"""The documents that go into a pool."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.names import MAX_CHARACTERS, is_name, is_unicode
from vllm_dare.pool.rows import BadRows, read_rows

_COLUMNS = ("id", "text", "token_ids", "group", "user", "item")
_MAX_TOKEN_ID = 2**31 - 2
_A_NAME = f"a string of at most {MAX_CHARACTERS} characters but NUL, or an integer"


@dataclass(frozen=True)
class Document:
    """One text that a model wrote.

    Attributes:
        id: its own id, and whom or what it is about if neither ``user`` nor ``item`` says so; integers are
            kept as decimal strings.
        text: the text; None if ``token_ids`` stands for it.
        token_ids: int32[length]; wins over ``text``.
        group: the group it belongs to; None if it goes to the global segment only.
        source: "file:line", for messages.
        user, item: the id of whom or what it is about; at most one of them.
    """

    id: str
    text: str | None = None
    token_ids: np.ndarray | None = None
    group: str | None = None
    source: str = "a document"
    user: str | None = None
    item: str | None = None


def read_documents(paths: Iterable[Path], bad_rows: BadRows | None = None) -> Iterator[Document]:
    """The documents of some files, in order; fields that are none of a `Document` are ignored.

    Args:
        paths: ``.jsonl``, ``.jsonl.gz`` and ``.parquet`` files (CSV files too, without token_ids).
        bad_rows: what to do with a bad row; None stops at the first.

    Raises:
        PoolError: a file is missing, unreadable or of another kind; or, unless skipped, a bad row.
    """
    bad_rows = bad_rows or BadRows()
    for path in paths:
        for source, row in read_rows(path, _COLUMNS, bad_rows):
            try:
                document = _document(source, row)
            except _BadRowError as error:
                bad_rows.report(f"{source} {error}.")
            else:
                yield document


class _BadRowError(Exception):
    """What is wrong with a row, to be read after its place."""


def _document(source: str, row: dict[str, Any]) -> Document:
    document_id, group = _id(row.get("id")), _name("a group", row.get("group"))
    user, item = _name("a user", row.get("user")), _name("an item", row.get("item"))
    if user is not None and item is not None:
        raise _BadRowError("has both a user and an item; keep the one that its text is about")
    if row.get("token_ids") is not None:
        return Document(document_id, None, _token_ids(row["token_ids"]), group, source, user, item)
    text = row.get("text")
    if text is None:
        raise _BadRowError("has neither text nor token_ids; give one of them")
    if not isinstance(text, str) or not is_unicode(text):
        raise _BadRowError("has a text that is not a string of valid Unicode; give a string")
    return Document(document_id, text, None, group, source, user, item)


def _id(value: Any) -> str:
    name = _as_name(value)
    if name is None:
        raise _BadRowError(f"has no id that can be used; give {_A_NAME}")
    return name


def _name(what: str, value: Any) -> str | None:
    """The name of a group, user or item."""
    name = _as_name(value)
    if name is None and value is not None:
        raise _BadRowError(f"has {what} that is no name; give {_A_NAME}, or leave it out")
    return name


def _as_name(value: Any) -> str | None:
    """A number, as clustering gives it, is its name in digits; None for what is no name."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and is_name(value) else None


def _token_ids(value: Any) -> np.ndarray:
    """int32[length]; whether the ids are within the vocabulary is for the builder to say."""
    try:
        ids = np.asarray(value)
    except ValueError:  # nested lists of different lengths
        ids = np.empty(0, object)
    if ids.shape == (0,) and isinstance(value, list) and not value:
        return np.empty(0, np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise _BadRowError("has token_ids that are not a list of integers; give a list of token ids")
    if ids.min() < 0 or ids.max() > _MAX_TOKEN_ID:
        raise _BadRowError("has a token id that is negative or beyond any vocabulary; give valid ids")
    return ids.astype(np.int32)
