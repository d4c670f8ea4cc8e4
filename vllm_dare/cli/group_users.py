"""`vllm-dare group users`: users who like the same."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_dare.cli import options
from vllm_dare.cli.evaluation_output import progress
from vllm_dare.errors import DareError

_GROUPS, _TABLES = "Groups", "Tables"
_WIDTH = 120  # of tables that go to a file


class MethodChoice(StrEnum):
    """The choices of --method."""

    lightgcn = "lightgcn"
    als = "als"
    bpr = "bpr"


def users(
    interactions: Annotated[
        Path,
        typer.Argument(
            help="Who liked what: .csv, .csv.gz or .parquet with user, item and, if there is one, a label of "
            "0 or 1 or a weight."
        ),
    ],
    *,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The directory to write.")],
    method: Annotated[
        MethodChoice,
        typer.Option(
            help="What learns the embeddings: lightgcn, als (fastest by far) or bpr.", rich_help_panel=_GROUPS
        ),
    ] = MethodChoice.lightgcn,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="User embeddings instead: .npy, the row being the user's id, or .parquet with user and "
            "embedding.",
            rich_help_panel=_GROUPS,
        ),
    ] = None,
    groups: Annotated[
        str,
        typer.Option(
            metavar="K|auto",
            help="How many; auto takes the number, of 4, 6, 8, 11, ... 128, with the largest silhouette.",
            rich_help_panel=_GROUPS,
        ),
    ] = "auto",
    min_size: Annotated[
        int,
        typer.Option(
            help="Groups of fewer users go into the nearest other one.",
            rich_help_panel=_GROUPS,
        ),
    ] = 10,
    prefix: Annotated[
        str, typer.Option(help="What names of groups begin with.", rich_help_panel=_GROUPS)
    ] = "users/",
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**32 - 1, help="The same seed gives the same groups.", rich_help_panel=_GROUPS
        ),
    ] = 0,
    min_weight: Annotated[
        float | None,
        typer.Option(
            help="From which weight on an interaction is positive; needed unless weights are 0 and 1.",
            rich_help_panel=_TABLES,
        ),
    ] = None,
    user_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="If not named so.", rich_help_panel=_TABLES)
    ] = None,
    item_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="If not named so.", rich_help_panel=_TABLES)
    ] = None,
    weight_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="If not named label, pos, click, rating, weight, score or count.",
            rich_help_panel=_TABLES,
        ),
    ] = None,
    time_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="If not named time, timestamp or date: which items a user liked first.",
            rich_help_panel=_TABLES,
        ),
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A table of users whose other columns place users without a history: .csv or .parquet.",
            rich_help_panel=_TABLES,
        ),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A table of items, for titles in the report.", rich_help_panel=_TABLES
        ),
    ] = None,
    title_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Its titles.", rich_help_panel=_TABLES)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace groups that are there.")] = False,
    json_file: options.JsonFile = None,
) -> None:
    """Group users by what they like.

    Interactions become embeddings, these are clustered by k-means, and the directory holds who belongs to
    which group, a router that places users nobody has clustered, a report and a picture; `pool build
    --assignments DIR` takes it. Needs the extra `groups` of vllm-dare, and torch for lightgcn. Exit status:
    0 done, 1 failed.
    """
    from rich.console import Console

    from vllm_dare.routing.interactions import Columns
    from vllm_dare.routing.user_groups import Plan, check_plan, group_users

    plan = Plan(
        interactions=interactions,
        output=output,
        columns=Columns(user_column, item_column, weight_column, time_column),
        min_weight=min_weight,
        method=method.value,
        embeddings=embeddings,
        groups=_count(groups),
        min_size=min_size,
        prefix=prefix,
        attributes=attributes,
        items=items,
        title_column=title_column,
        seed=seed,
        overwrite=overwrite,
    )
    check_plan(plan)
    if json_file is not None:
        from vllm_dare.generation.paths import check_report_file

        inputs = (interactions, embeddings, attributes, items, output)
        check_report_file("--json", json_file, [path for path in inputs if path is not None])
    with progress(Console(stderr=True)) as tell:
        result = group_users(plan, tell)
    _print(output, result)
    if json_file is not None:
        from vllm_dare.generation.paths import report_errors
        from vllm_dare.pool.files import replace_text
        from vllm_dare.routing.report import encode

        with report_errors("--json", json_file):
            replace_text(json_file, encode(result))


def _count(text: str) -> int | None:
    """The value of --groups; None is auto."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise DareError(f"--groups takes a whole number or auto, not {text!r}.") from None


def _print(output: Path, result: dict[str, Any]) -> None:
    from rich.console import Console

    from vllm_dare.routing.report import lines, tables

    out = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in tables(result):
        out.print(table)
    for line in lines(result):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    num_users = result["data"]["users_with_group"]
    wrote = f"Wrote {len(result['groups']):,} groups of {num_users:,} users to {output}."
    out.print(wrote, highlight=False, markup=False, soft_wrap=True)
