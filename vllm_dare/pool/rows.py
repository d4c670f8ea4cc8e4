"""Rows of JSONL, CSV and Parquet files, each with the place it came from."""

import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_dare.errors import PoolError

Row = tuple[str, dict[str, Any]]

_BATCH_ROWS = 1024


@dataclass
class BadRows:
    """What to do with a row that cannot be used: by default, stop.

    Attributes:
        skip: count it and go on instead.
        num_skipped: how many were skipped so far.
        first_reason: what was wrong with the first of them.
    """

    skip: bool = False
    num_skipped: int = 0
    first_reason: str | None = None

    def report(self, reason: str) -> None:
        """Raise ``reason`` as PoolError, or count it."""
        if not self.skip:
            raise PoolError(reason)
        self.num_skipped += 1
        self.first_reason = self.first_reason or reason


def read_rows(path: Path, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
    """The rows of one file as ("file:line", fields); unknown fields may be left out.

    Args:
        path: a ``.jsonl``, ``.csv`` (each also with ``.gz``) or ``.parquet`` file.
        columns: the fields that are of interest.
        bad_rows: where lines go that are not a row.

    Raises:
        PoolError: the file is missing, unreadable or of another kind; or, unless skipped, a bad line.
    """
    name = path.name.lower().removesuffix(".gz")
    try:
        if path.name.lower().endswith(".parquet"):
            yield from _parquet_rows(path, columns)
        elif name.endswith(".jsonl"):
            yield from _json_rows(path, bad_rows)
        elif name.endswith(".csv"):
            yield from _csv_rows(path, bad_rows)
        else:
            raise PoolError(f"Cannot read {path}: give a .jsonl, .jsonl.gz, .csv, .csv.gz or .parquet file.")
    except FileNotFoundError:
        raise PoolError(f"There is no file {path}; check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise PoolError(f"Cannot read {path} ({error}); check that the file is complete.") from None


def _json_rows(path: Path, bad_rows: BadRows) -> Iterator[Row]:
    for source, line in _lines(path):
        try:
            row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
        except UnicodeDecodeError:
            bad_rows.report(f"{source} is not valid UTF-8; save the file as UTF-8.")
        except (ValueError, RecursionError):
            bad_rows.report(f"{source} is not valid JSON; write one JSON object a line.")
        else:
            if isinstance(row, dict):
                yield source, row
            elif line.strip():
                bad_rows.report(f"{source} is not a JSON object; write one JSON object a line.")


def _csv_rows(path: Path, bad_rows: BadRows) -> Iterator[Row]:
    lines = (line.decode("utf-8-sig") for _, line in _lines(path))
    reader = csv.DictReader(lines, restkey="", strict=True)
    try:
        for row in reader:
            source = f"{path}:{reader.line_num}"
            if "" in row or None in row.values():
                bad_rows.report(f"{source} has more or fewer columns than the first line; correct it.")
            else:
                yield source, row
    except (csv.Error, UnicodeDecodeError) as error:
        place = f"{path}:{reader.line_num + 1}"
        raise PoolError(f"{place} is not valid CSV in UTF-8 ({error}); correct the line.") from None


def _parquet_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            present = [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(_BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise PoolError(
            f"Cannot read {path} as Parquet ({reason}); check that the file is complete."
        ) from None


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line, with its place."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield f"{path}:{number}", line
