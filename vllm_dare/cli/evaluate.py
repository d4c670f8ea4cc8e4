"""`vllm-dare evaluate`: does quality hold?"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_dare.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_dare.evaluation.quality import Plan, Tell

_TEXTS, _USERS, _LIMITS = "Texts", "What users did", "Limits for the verdict"
_WIDTH = 120  # of tables that go to a file


def evaluate(
    variants: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=FILE...",
            help="Files that `generate` wrote for the same ids, the baseline first.",
        ),
    ],
    *,
    items: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Item table: .csv or .parquet.", rich_help_panel=_USERS),
    ] = None,
    attribute: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Its column whose values texts state, such as genres: separated by |, or a JSON list.",
            rich_help_panel=_USERS,
        ),
    ] = None,
    item_id_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Its column of ids, if not named so.", rich_help_panel=_USERS),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Values to look for instead, one a line; after a TAB other ways to say it, separated by "
            "commas (!phrase: something else).",
            rich_help_panel=_USERS,
        ),
    ] = None,
    interactions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Who liked what: .csv, .csv.gz or .parquet with user, item and a label of 0 or 1.",
            rich_help_panel=_USERS,
        ),
    ] = None,
    user_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="If not named so.", rich_help_panel=_USERS)
    ] = None,
    item_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="If not named so.", rich_help_panel=_USERS)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="If not named so.", rich_help_panel=_USERS)
    ] = None,
    time_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="For --split-by time.", rich_help_panel=_USERS),
    ] = None,
    id_prefix: Annotated[
        str,
        typer.Option(
            help="What ids of texts begin with and user ids do not: u for u42.", rich_help_panel=_USERS
        ),
    ] = "",
    split_by: Annotated[
        str,
        typer.Option(
            help="What ranking models are tested on: row (some of each user's interactions), user, time.",
            rich_help_panel=_USERS,
        ),
    ] = "row",
    seeds: Annotated[
        int, typer.Option(min=1, help="Ranking models for each variant.", rich_help_panel=_USERS)
    ] = 5,
    model: Annotated[
        str | None,
        typer.Option(help="Score the texts by this model; needs --prompts.", rich_help_panel=_TEXTS),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The prompts of the texts.", rich_help_panel=_TEXTS),
    ] = None,
    embedding_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A sentence-transformers model; without one, TF-IDF is fitted on the baseline.",
            rich_help_panel=_TEXTS,
        ),
    ] = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = None,
    engine_args: options.EngineArgs = "{}",
    max_length_change: Annotated[
        float, typer.Option(min=0, help="Of the mean length, either way.", rich_help_panel=_LIMITS)
    ] = 0.1,
    max_unfinished: Annotated[
        float, typer.Option(min=0, help="More texts that end at the limit.", rich_help_panel=_LIMITS)
    ] = 0.02,
    max_precision_loss: Annotated[
        float, typer.Option(min=0, help="Of what is stated of users.", rich_help_panel=_LIMITS)
    ] = 0.02,
    max_auc_loss: Annotated[
        float, typer.Option(min=0, help="Of the ranking models.", rich_help_panel=_LIMITS)
    ] = 0.002,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of stated values with the baseline; by default not judged.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write everything found, as JSON.", rich_help_panel=options.OUTPUT),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write PNG pictures there.", rich_help_panel=options.OUTPUT),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a Markdown report.", rich_help_panel=options.OUTPUT),
    ] = None,
) -> None:
    """Compare texts with a baseline's: how they are written, what they state, and how models rank by them.

    Every figure has a bootstrap interval, and every variant a verdict: it holds, is worse, or neither is
    shown. Needs `pip install 'vllm-dare[evaluate]'`. Exit status: 0 done, whatever the verdict; 1 failed.
    """
    from rich.console import Console

    from vllm_dare.evaluation.bench_provenance import provenance
    from vllm_dare.evaluation.interactions import Columns
    from vllm_dare.evaluation.knowledge import parse_variants
    from vllm_dare.evaluation.quality import Plan
    from vllm_dare.evaluation.quality import evaluate as run
    from vllm_dare.evaluation.quality_verdict import Limits
    from vllm_dare.generation.engine import check_model
    from vllm_dare.generation.settings import EngineSettings

    engine = None
    if model is not None:
        check_model(model)
        settings = options.json_object(engine_args)
        engine = EngineSettings(
            model, draft_tokens=0, max_model_len=max_model_len, dtype=dtype, engine_args=settings
        )
    plan = Plan(
        files=parse_variants(variants),
        items=items,
        attribute=attribute,
        item_id_column=item_id_column,
        vocabulary=vocabulary,
        interactions=interactions,
        columns=Columns(user_column, item_column, label_column, time_column),
        id_prefix=id_prefix,
        prompts=prompts,
        engine=engine,
        embedding_model=embedding_model,
        seeds=seeds,
        split=split_by,  # type: ignore[arg-type]  # checked there
        limits=Limits(max_length_change, max_unfinished, max_precision_loss, max_auc_loss, min_agreement),
    )
    check_outputs(_inputs(plan), json_file, plots, markdown)
    console = Console(stderr=True)
    origin = provenance()
    with _progress(console) as tell:
        result = run(plan, origin, tell)
    report(result, json_file, plots, markdown)


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


def report(result: dict[str, Any], json_file: Path | None, plots: Path | None, markdown: Path | None) -> None:
    """Print the tables and the verdicts, and write the reports that were asked for."""
    from rich.console import Console

    from vllm_dare.evaluation.grid import stacked
    from vllm_dare.evaluation.quality_plots import write_plots
    from vllm_dare.evaluation.quality_report import about_lines, tables, verdict_lines
    from vllm_dare.evaluation.quality_report import markdown as markdown_report
    from vllm_dare.generation.paths import report_errors
    from vllm_dare.pool.files import replace_text

    out = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in (part for grid in tables(result) for part in stacked(grid, out.width)):
        out.print(table)
    for line in [*about_lines(result), *verdict_lines(result)]:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_file is not None:
        with report_errors("--json", json_file):
            replace_text(json_file, json.dumps(result, indent=1) + "\n")
    pictures: list[Path] = []
    if plots is not None:
        with report_errors("--plots", plots):
            pictures = write_plots(result, plots)
    if markdown is not None:
        links = [os.path.relpath(picture, markdown.parent) for picture in pictures]
        with report_errors("--markdown", markdown):
            replace_text(markdown, markdown_report(result, links))


def _inputs(plan: "Plan") -> list[Path]:
    others = (plan.items, plan.vocabulary, plan.interactions, plan.prompts)
    return [*plan.files.values(), *(path for path in others if path is not None)]


@contextmanager
def _progress(console: "Console") -> Iterator["Tell"]:
    """What is being done, on a terminal; nothing elsewhere."""
    if not console.is_terminal:
        yield lambda what: None
        return
    with console.status("") as status:
        yield status.update
