"""Prompt files: JSON lines, gzipped JSON lines or Parquet, read one row at a time."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError

RowId = str | int

_ALIASES = {name: f"dare_{name}" for name in ("group", "user", "item", "history", "attributes")}


@dataclass(frozen=True)
class PromptRow:
    """One text to write.

    Attributes:
        id: the caller's name for the row; unique in the file.
        prompt: plain text, or a chat as a list of messages for the model's chat template.
        metadata: the row's ``dare_*`` request keys, not yet checked.
        max_tokens: the row's own limit, not yet checked; None takes the run's.
    """

    id: RowId
    prompt: str | list[dict[str, Any]]
    metadata: Mapping[str, Any]
    max_tokens: Any = None


def read_prompts(path: Path, limit: int | None = None) -> Iterator[PromptRow]:
    """Read ``path`` row by row, holding one row (Parquet: one batch) in memory.

    Raises:
        DareError: the file cannot be read, or a row is not a prompt; the message names the row.
    """
    for number, record in enumerate(islice(_records(path), limit), start=1):
        yield _row(record, f"{path}, row {number}")


def id_key(row_id: RowId) -> str:
    """One text for each id: the number 1 and the text "1" are the same id, as they are in a pool."""
    return json.dumps(str(row_id))


def _records(path: Path) -> Iterator[Any]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet_records(path)
        else:
            yield from _json_records(path)
    except FileNotFoundError:
        raise DareError(f"There is no prompt file {path}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DareError(f"The prompt file {path} cannot be read: {error}.") from None


def _json_records(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except UnicodeDecodeError:
                raise DareError(f"{path}, line {number} is not valid UTF-8.") from None
            except RecursionError:
                raise DareError(f"{path}, line {number} is nested too deeply.") from None
            except ValueError:
                raise DareError(f"{path}, line {number} is not a JSON object.") from None


def _parquet_records(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise DareError(f"The prompt file {path} is not a Parquet file: {error}.") from None


def _row(record: Any, where: str) -> PromptRow:
    if not isinstance(record, dict):
        raise DareError(f"{where} is not a JSON object.")
    row_id = record.get("id")
    if not isinstance(row_id, str | int) or isinstance(row_id, bool):
        raise DareError(f"{where} needs an `id` that is a text or a whole number, not {row_id!r}.")
    if row_id == "":
        raise DareError(f"{where} has an empty `id`.")
    return PromptRow(row_id, _prompt(record, where), _metadata(record), record.get("max_tokens"))


def _prompt(record: Mapping[str, Any], where: str) -> str | list[dict[str, Any]]:
    prompt, messages = record.get("prompt"), record.get("messages")
    if (prompt is None) == (messages is None):
        raise DareError(f"{where} needs either a `prompt` or `messages`.")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise DareError(f"{where}: `prompt` must be a text, not {type(prompt).__name__}.")
        return prompt
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise DareError(
            f'{where}: `messages` must be a list of chat messages such as {{"role": "user", "content": "…"}}.'
        )
    return messages


def _metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row's request keys; the full spelling (`dare_group`) goes before the short one (`group`)."""
    short = {full: record[name] for name, full in _ALIASES.items() if record.get(name) is not None}
    full = {name: value for name, value in record.items() if name.startswith("dare_") and value is not None}
    return short | full
