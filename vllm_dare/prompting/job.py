"""Write a file of prompts, whole or not at all."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError
from vllm_dare.generation.paths import check_report_file
from vllm_dare.pool.files import temporary_file
from vllm_dare.prompting.rows import RowMaker
from vllm_dare.prompting.selection import Selection

Tell = Callable[[int, int], None]


@dataclass
class Written:
    """What was written.

    Attributes:
        rows: prompts.
        choices: history entries that users' prompts show, together.
        without_group: rows without a group.
        characters: of all prompts together.
    """

    rows: int = 0
    choices: int = 0
    without_group: int = 0
    characters: int = 0


def check_output(output: Path, inputs: Iterable[Path], overwrite: bool) -> None:
    """Whether the file can be written, before the work.

    Raises:
        DareError: it cannot, is one of the inputs, or exists.
    """
    if output.suffix in (".gz", ".parquet"):
        raise DareError(f"--output {output} cannot be written: prompts are plain JSON lines, name it .jsonl.")
    check_report_file("--output", output, inputs)
    if output.exists() and not overwrite:
        raise DareError(f"{output} exists; use --overwrite to replace it, or another --output.")


def write_prompts(
    selection: Selection, maker: RowMaker, output: Path, limit: int | None = None, tell: Tell | None = None
) -> Written:
    """Write a row for every subject.

    Args:
        selection: the subjects.
        maker: what makes the rows.
        output: the file; an older one is replaced once all rows are written.
        limit: the most rows; None for all.
        tell: is told how many rows are written, and of how many.

    Raises:
        DareError: a subject has no prompt (see `RowMaker.row`), or no subject has a group.
    """
    total = selection.total if limit is None else min(limit, selection.total)
    written = Written()
    with temporary_file(output.parent) as file:
        for subject in islice(selection.subjects, total):
            row = maker.row(subject)
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))
            _count(written, row, len(getattr(subject, "history", ())))
            if tell is not None:
                tell(written.rows, total)
        if maker.groups is not None and written.without_group == written.rows:
            raise DareError(
                f"None of the subjects has a group (groups are known of such as {next(iter(maker.groups))}); "
                "check that --groups has the same ids, or leave it out."
            )
    os.replace(file.name, output)
    return written


def _count(written: Written, row: dict[str, Any], choices: int) -> None:
    written.rows += 1
    written.choices += choices
    written.without_group += "group" not in row
    messages = row.get("messages", [{"content": row.get("prompt", "")}])
    written.characters += sum(len(message["content"]) for message in messages)
