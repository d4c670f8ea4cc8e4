"""What `vllm-dare evaluate` shows and writes, with and without `--sweep`."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_dare.evaluation.grid import Grid
    from vllm_dare.evaluation.quality import Tell

_WIDTH = 120  # of tables that go to a file


def check_outputs(
    inputs: Iterable[Path], json_file: Path | None, plots: Path | None, markdown: Path | None
) -> None:
    """Whether every report can be written, before the work.

    Raises:
        DareError: one cannot.
    """
    from vllm_dare.generation.paths import check_report_file, check_report_folder

    others = list(inputs)
    for option, file in (("--json", json_file), ("--markdown", markdown)):
        if file is not None:
            check_report_file(option, file, others)
            others.append(file)
    if plots is not None:
        check_report_folder("--plots", plots)


def print_tables(result: dict[str, Any], last: "Sequence[Grid]" = (), lines: Sequence[str] = ()) -> None:
    """Print the tables of an evaluation and its verdicts, and what comes after either.

    Args:
        result: the result file's content.
        last: further tables.
        lines: further lines.
    """
    from rich.console import Console

    from vllm_dare.evaluation.grid import stacked
    from vllm_dare.evaluation.quality_report import about_lines, tables, verdict_lines

    out = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in (part for grid in [*tables(result), *last] for part in stacked(grid, out.width)):
        out.print(table)
    for line in [*about_lines(result), *verdict_lines(result), *lines]:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def write_reports(
    result: dict[str, Any],
    draw: Callable[[Path], list[Path]],
    text: Callable[[list[str]], str],
    json_file: Path | None,
    plots: Path | None,
    markdown: Path | None,
) -> None:
    """Write the reports that were asked for.

    Args:
        result: for the JSON file.
        draw: writes the pictures into a folder.
        text: the Markdown report, given the pictures' links.
        json_file, plots, markdown: where to; None leaves one out.

    Raises:
        DareError: one cannot be written.
    """
    from vllm_dare.generation.paths import report_errors
    from vllm_dare.pool.files import replace_text

    if json_file is not None:
        with report_errors("--json", json_file):
            replace_text(json_file, json.dumps(result, indent=1) + "\n")
    pictures: list[Path] = []
    if plots is not None:
        with report_errors("--plots", plots):
            pictures = draw(plots)
    if markdown is not None:
        links = [os.path.relpath(picture, markdown.parent) for picture in pictures]
        with report_errors("--markdown", markdown):
            replace_text(markdown, text(links))


@contextmanager
def progress(console: "Console") -> "Iterator[Tell]":
    """What is being done, on a terminal; nothing elsewhere."""
    if not console.is_terminal:
        yield lambda what: None
        return
    with console.status("") as status:
        yield status.update
