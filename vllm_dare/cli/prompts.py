"""`vllm-dare prompts`: from tables to the prompts of a knowledge framework."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vllm_dare.prompting.job import Written

_COLUMNS = "Columns that are not named as usual"


class AboutChoice(StrEnum):
    """The choices of --about."""

    users = "users"
    items = "items"


def prompts(
    *,
    framework: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="kar, once, trawl or rlmrec; or your own, as FILE.py:FUNCTION or MODULE:FUNCTION.",
        ),
    ],
    about: Annotated[AboutChoice, typer.Option(help="Whom or what the texts are about.")],
    items: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Item table: .csv, .csv.gz or .parquet with id and title; all other columns are attributes.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines to write, for `generate`.")],
    interactions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Who chose what: user, item and, if there are any, a label of 0 or 1 or a weight such as a "
            "rating, and a time. Needed for users.",
        ),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="User table: id, and what else is known, such as age."),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Who belongs to which group: what `group` wrote, or a table of user or item, and group.",
        ),
    ] = None,
    history: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Most titles of a user, the most recent ones.")
    ] = 20,
    min_interactions: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Leave out users (items, if --interactions is given) with fewer."
        ),
    ] = 1,
    min_weight: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="From which weight on an item counts as liked.",
            show_default="1 for labels, 4 for ratings up to 5",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Write only the first rows.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Most tokens a text may get.", show_default="that of `generate`"
        ),
    ] = None,
    routing: Annotated[
        bool,
        typer.Option(
            "--routing",
            help="Add what finds a group for those whose group is not known: item ids, attributes.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    user_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --interactions.", rich_help_panel=_COLUMNS)
    ] = None,
    item_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --interactions.", rich_help_panel=_COLUMNS)
    ] = None,
    weight_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --interactions.", rich_help_panel=_COLUMNS)
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --interactions.", rich_help_panel=_COLUMNS)
    ] = None,
    item_id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --items.", rich_help_panel=_COLUMNS)
    ] = None,
    title_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --items.", rich_help_panel=_COLUMNS)
    ] = None,
    user_id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --users.", rich_help_panel=_COLUMNS)
    ] = None,
) -> None:
    """Write the prompts of a knowledge framework for users or items, as `generate` reads them.

    Each row has an id (u42, i42), the prompt, the plain id as user or item, and its group, if --groups knows
    one.
    """
    from vllm_dare.prompting.frameworks import load_builder
    from vllm_dare.prompting.job import check_output, write_prompts
    from vllm_dare.prompting.rows import RowMaker, read_groups
    from vllm_dare.prompting.selection import Tables, select
    from vllm_dare.prompting.tables import Columns

    check_output(
        output, [path for path in (items, interactions, users, groups) if path is not None], overwrite
    )
    columns = Columns(
        user_column, item_column, weight_column, time_column, item_id_column, title_column, user_id_column
    )
    maker = RowMaker(
        framework=framework,
        builder=load_builder(framework, about.value),
        groups=None if groups is None else read_groups(groups, about.value),
        max_tokens=max_tokens,
        routing=routing,
    )
    tables = Tables(items, interactions, users, columns, min_weight)
    selection = select(tables, about.value, history, min_interactions)
    with _progress() as tell:
        written = write_prompts(selection, maker, output, limit, tell)
    typer.echo(_summary(written, output))
    for note in selection.notes:
        typer.echo(note)
    if groups is not None and written.without_group:
        typer.echo(f"{written.without_group:,} of them have no group in {groups}.")


def _summary(written: "Written", output: Path) -> str:
    text = f"Wrote {written.rows:,} prompts to {output}: {written.characters / written.rows:,.0f} characters"
    titles = f" and {written.choices / written.rows:,.1f} titles" if written.choices else ""
    return f"{text}{titles} on average."


@contextmanager
def _progress() -> "Iterator[Callable[[int, int], None]]":
    """A bar on stderr; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
