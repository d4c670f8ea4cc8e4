"""Prompt files: JSON lines, gzipped JSON lines or Parquet, or directories of them, read one row at a time."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vllm_dare.errors import DareError

RowId = str | int

_KINDS = (".jsonl", ".jsonl.gz", ".parquet")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
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
    """Read ``path``, a file or a directory, row by row, holding one row (Parquet: one batch) in memory.

    Raises:
        DareError: a file cannot be read, or a row is not a prompt; the message names the row.
    """
    yield from islice(chain.from_iterable(read_prompt_file(file, path) for file in prompt_files(path)), limit)


def prompt_files(path: Path) -> list[Path]:
    """The files that ``path`` stands for, in the order of their names: itself, or what is in the directory.

    In a directory, names that begin with a dot or an underscore are left out, as Ray and Spark do.

    Raises:
        DareError: it is a directory without prompt files.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.name.endswith(_KINDS) and file.is_file())
    files = [file for file in found if not any(part[0] in "._" for part in file.relative_to(path).parts)]
    if not files:
        raise DareError(f"The directory {path} holds no prompt files; give {', '.join(_KINDS)} files.")
    return files


def read_prompt_file(path: Path, root: Path) -> Iterator[PromptRow]:
    """The rows of one file of `prompt_files`.

    Of the folders between ``root`` and it, each ``name=value`` is a field of every row, as in Hive.

    Raises:
        DareError: as `read_prompts`.
    """
    fields = _folder_fields(path, root)
    for number, record in enumerate(_records(path), start=1):
        filled = {**fields, **record} if fields and isinstance(record, dict) else record
        yield _row(filled, f"{path}, row {number}")


def id_key(row_id: RowId) -> str:
    """One text for each id: the number 1 and the text "1" are the same id, as they are in a pool."""
    return json.dumps(str(row_id))


def _folder_fields(path: Path, root: Path) -> dict[str, str]:
    folders = path.relative_to(root).parts[:-1]
    pairs = (folder.partition("=") for folder in folders if "=" in folder)
    return {unquote(name): unquote(value) for name, _, value in pairs if value not in ("", _NO_VALUE)}


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
