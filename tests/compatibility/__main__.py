"""Which of vLLM's names that the package relies on are where: ``python -m tests.compatibility SOURCE…``.

A source is ``installed``, a wheel, an sdist or a directory that holds ``vllm/``; its text is read, nothing is
imported or run. The first source is what the others are compared with. Exit status: 0 everything that is
relied on is there, 1 something is missing or changed, 2 wrong usage.
"""

import sys
from collections import Counter
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.compatibility.check import BROKEN, Finding, Status, check, compare
from tests.compatibility.ledger import seams
from tests.compatibility.source import SourceError, open_source

_STYLES: dict[Status, str] = {
    "ok": "green",
    "moved": "green",
    "differs": "yellow",
    "changed": "bold red",
    "missing": "bold red",
}


def report(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE…", help="`installed`, a wheel, an sdist, …")
    ],
    everything: Annotated[bool, typer.Option("--all", help="List what is the same, too.")] = False,
) -> None:
    """Hold the ledger against vLLMs and print what is not the same everywhere."""
    try:
        opened = [open_source(source) for source in sources]
    except SourceError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    ledger = seams()
    console = Console(width=None if sys.stdout.isatty() else 200)
    found = [check(source, ledger) for source in opened]
    for source, findings in zip(opened, found, strict=True):
        rows = [(compare(before, now), before, now) for before, now in zip(found[0], findings, strict=True)]
        names = [opened[0].name] if source is opened[0] else [opened[0].name, source.name]
        _print(console, names, rows, everything)
    broken = any(finding.status in BROKEN for findings in found for finding in findings)
    raise typer.Exit(1 if broken else 0)


def _print(
    console: Console, names: list[str], rows: list[tuple[Status, Finding, Finding]], everything: bool
) -> None:
    """One source's table.

    Args:
        names: of the source, after that of the one that it is compared with, if it is not itself.
        rows: how a name stands, and where it is in the one and in the other.
    """
    table = Table()
    for head in ("", "name of vLLM", *names, "by, what for, and the difference"):
        table.add_column(head, overflow="fold")
    for status, before, now in rows:
        if everything or status in (*BROKEN, "differs"):
            places = [before.place, now.place][-len(names) :]
            told = f"{', '.join(now.seam.by)}: {now.seam.why}{_difference(status, before, now)}"
            table.add_row(f"[{_STYLES[status]}]{status}[/]", escape(now.name), *places, escape(told))
    if table.row_count:
        console.print(table)
    counts = Counter(status for status, _, _ in rows)
    told = ", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status])
    console.print(f"{names[-1]}: {len(rows)} checks: {told}.", highlight=False)


def _difference(status: Status, before: Finding, now: Finding) -> str:
    if status in BROKEN:
        return f"\n{now.fault}"
    if status != "differs":
        return ""
    old, new = before.declaration.split(", "), now.declaration.split(", ")
    gone, come = [part for part in old if part not in new], [part for part in new if part not in old]
    return "".join([f"\n- {', '.join(gone)}" if gone else "", f"\n+ {', '.join(come)}" if come else ""])


if __name__ == "__main__":
    typer.run(report)
