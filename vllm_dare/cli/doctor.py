"""`vllm-dare doctor`: would it work here?"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_dare.errors import DareError

if TYPE_CHECKING:
    from vllm_dare.doctor import Check

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    pool: Annotated[Path | None, typer.Option(help="A pool directory to check too.")] = None,
    model: Annotated[str | None, typer.Option(help="A model whose tokenizer the pool must have.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check this machine's set-up, and a pool; exit status 1 if something would not work."""
    from vllm_dare.doctor import run_checks

    checks = run_checks(pool, model)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print_table(checks)
    failed = [check.name for check in checks if check.status == "failed"]
    if failed:
        raise DareError(f"vllm-dare would not work here; see {', '.join(failed)} above.")


def _print_table(checks: "list[Check]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("", "check", Column("finding", overflow="fold"))
    for check in checks:
        style = _STYLES[check.status]
        table.add_row(f"[{style}]{check.status}[/{style}]", check.name, escape(check.sentence))
    Console().print(table)
