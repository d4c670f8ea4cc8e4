"""The texts that are compared: files that `vllm-dare generate` wrote, for the same ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.errors import ConfigError, DareError
from vllm_dare.pool.rows import BadRows, read_rows

_COLUMNS = ("id", "text", "completion_tokens", "finish_reason", "token_ids")
_NAMED = 3  # so many ids are named in a message


@dataclass(frozen=True)
class Knowledge:
    """The texts of one variant, in the baseline's order.

    Attributes:
        name: what the user calls it.
        file: where they were read.
        texts: one a document.
        lengths: float64[documents], output tokens; NaN where the file does not say.
        unfinished: float64[documents], 1 where the text ended at the token limit; NaN where the file does not
            say.
        token_ids: of each text; None unless every row has them.
    """

    name: str
    file: Path
    texts: Sequence[str]
    lengths: np.ndarray
    unfinished: np.ndarray
    token_ids: Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class KnowledgeSet:
    """The variants, the baseline first.

    Attributes:
        ids: of the documents that are compared.
        variants: all with these ids, in this order.
        failed: name to the number of rows that are errors; whoever failed in one variant is left out of all.
        left_out: ids left out for that.
    """

    ids: Sequence[str]
    variants: Sequence[Knowledge]
    failed: Mapping[str, int]
    left_out: int

    @property
    def baseline(self) -> Knowledge:
        """What the others are compared with."""
        return self.variants[0]


def parse_variants(arguments: Sequence[str]) -> dict[str, Path]:
    """Name to file of arguments ``NAME=FILE``, in their order.

    Raises:
        ConfigError: fewer than two, one without a name, or a name twice.
    """
    files: dict[str, Path] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        if not (name and equals and file):
            raise ConfigError(f"Give each file as NAME=FILE, such as plain=plain.jsonl, not {argument!r}.")
        if name in files:
            raise ConfigError(f"The name {name} stands for two files; give each file a name of its own.")
        files[name] = Path(file)
    if len(files) < 2:
        raise ConfigError(
            "Give at least two files as NAME=FILE: the baseline first, then what is compared with it."
        )
    return files


def read_knowledge(files: Mapping[str, Path]) -> KnowledgeSet:
    """Read the variants, and put them in the same order.

    Args:
        files: name to a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file with ``id``, ``text`` and, as
            `vllm-dare generate` writes them, ``completion_tokens``, ``finish_reason`` and ``token_ids``.

    Raises:
        DareError: a file cannot be read or is empty, has an id twice, or other ids than the baseline's.
    """
    rows = {name: _read(file) for name, file in files.items()}
    (first, own), *others = rows.items()
    for name, other in others:
        _check_same_ids(files[first], own, files[name], other)
    failed = {name: {i for i, row in found.items() if _failed(row)} for name, found in rows.items()}
    left_out = set().union(*failed.values())
    ids = [i for i in own if i not in left_out]
    if not ids:
        raise DareError("No document is left to compare: every id has a row that failed in some file.")
    variants = [_knowledge(name, files[name], [found[i] for i in ids]) for name, found in rows.items()]
    return KnowledgeSet(ids, variants, {name: len(found) for name, found in failed.items()}, len(left_out))


def _read(file: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for source, row in read_rows(file, _COLUMNS, BadRows()):
        row_id = row.get("id")
        if not isinstance(row_id, str | int) or isinstance(row_id, bool) or row_id == "":
            raise DareError(f"{source} has no id; give a string or an integer.")
        if str(row_id) in rows:
            raise DareError(f"{source} repeats the id {row_id!r}; ids must be unique in a file.")
        if not isinstance(row.get("text"), str) and not _failed(row):
            raise DareError(f"{source} has no text; give a string.")
        rows[str(row_id)] = row
    if not rows:
        raise DareError(f"{file} has no rows; give a file that `vllm-dare generate` wrote.")
    return rows


def _failed(row: Mapping[str, Any]) -> bool:
    return row.get("finish_reason") == "error"


def _check_same_ids(first: Path, own: Mapping[str, Any], second: Path, other: Mapping[str, Any]) -> None:
    missing = [i for i in own if i not in other]
    extra = [i for i in other if i not in own]
    if not missing and not extra:
        return
    parts = [
        f"{len(ids):,} of {has} are not in {lacks} ({_some(ids)})"
        for ids, has, lacks in ((missing, first, second), (extra, second, first))
        if ids
    ]
    raise DareError(
        f"The files have different ids: {' and '.join(parts)}; generate both from the same prompts."
    )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def _knowledge(name: str, file: Path, rows: Sequence[Mapping[str, Any]]) -> Knowledge:
    lists = [row.get("token_ids") for row in rows]
    whole = all(isinstance(ids, list) for ids in lists)
    return Knowledge(
        name=name,
        file=file,
        texts=[row["text"] for row in rows],
        lengths=np.array([_length(row) for row in rows], np.float64),
        unfinished=np.array([_unfinished(row) for row in rows], np.float64),
        token_ids=[ids or [] for ids in lists] if whole else None,
    )


def _length(row: Mapping[str, Any]) -> float:
    tokens = row.get("completion_tokens")
    if isinstance(tokens, int):
        return tokens
    ids = row.get("token_ids")
    return len(ids) if isinstance(ids, list) else np.nan


def _unfinished(row: Mapping[str, Any]) -> float:
    reason = row.get("finish_reason")
    return np.nan if reason is None else float(reason == "length")
