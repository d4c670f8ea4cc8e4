"""`vllm-dare evaluate`: does quality hold?"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_dare.cli import options
from vllm_dare.cli.evaluation_output import check_outputs, print_tables, progress, write_reports
from vllm_dare.cli.sweep import NEEDED, check_sweep, run_sweep

if TYPE_CHECKING:
    from vllm_dare.evaluation.quality import Plan

_TEXTS, _USERS, _LIMITS, _SWEEP = "Texts", "What users did", "Limits for the verdict", "Sweep"


def evaluate(
    variants: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=FILE",
            help="Files that `generate` wrote for the same ids, the baseline first.",
        ),
    ] = None,
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
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Instead of reading files, generate them: without drafts, and with each of --settings.",
            rich_help_panel=_SWEEP,
        ),
    ] = False,
    settings: Annotated[
        str | None,
        typer.Option(
            help="Rules of verification, separated by commas: strict, presets (careful, fast, ...), bounds "
            "(top_k=3,min_prob=0.05; a semicolon parts two of these), and plain to run without drafts again.",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    pool: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Retrieval pool.", rich_help_panel=_SWEEP)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the texts go; a later run takes what is complete.",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many prompts.", rich_help_panel=_SWEEP)] = 100,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.", rich_help_panel=_SWEEP)] = 16,
    draft_tokens: Annotated[
        int, typer.Option(min=1, max=128, help="Most draft tokens a step.", rich_help_panel=_SWEEP)
    ] = 16,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    json_file: options.JsonFile = None,
    plots: options.Plots = None,
    markdown: options.Markdown = None,
) -> None:
    """Compare texts with a baseline's: how they are written, what they state, and how models rank by them.

    Every figure has a bootstrap interval, and every variant a verdict: it holds, is worse, or neither is
    shown. With --sweep, the texts are generated first, with several rules of verification, and the fastest
    is named whose quality holds. Needs the extra `evaluate` of vllm-dare. Exit status: 0 done, whatever the
    verdict; 1 failed; 130 interrupted.
    """
    from rich.console import Console

    from vllm_dare.evaluation.bench_provenance import provenance
    from vllm_dare.evaluation.interactions import Columns
    from vllm_dare.evaluation.knowledge import parse_variants
    from vllm_dare.evaluation.quality import Plan, check_inputs
    from vllm_dare.evaluation.quality import evaluate as run
    from vllm_dare.evaluation.quality_verdict import Limits
    from vllm_dare.evaluation.sweep import Sweep, parse_settings
    from vllm_dare.generation.engine import check_model
    from vllm_dare.generation.settings import EngineSettings, SamplingSettings

    if sweep:
        values = (model, prompts, settings, output)
        check_sweep(variants, dict(zip(NEEDED, values, strict=True)))
    engine = None
    if model is not None:
        check_model(model)
        engine = EngineSettings(
            model,
            draft_tokens=0,
            max_model_len=max_model_len,
            dtype=dtype,
            engine_args=options.json_object(engine_args),
        )
    plan = Plan(
        files={} if sweep else parse_variants(variants or []),
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
    check_inputs(plan, prompts if sweep else None, limit)
    console = Console(stderr=True)
    origin = provenance()
    if sweep and engine is not None and prompts is not None and output is not None:
        what = Sweep(
            prompts=prompts,
            limit=limit,
            engine=replace(engine, pool=pool, draft_tokens=draft_tokens),
            sampling=SamplingSettings(max_tokens, temperature, top_p, top_k),
            settings=parse_settings(settings or ""),
            concurrency=concurrency,
            output=output,
        )
        run_sweep(what, plan, origin, console, json_file, plots, markdown)
        return
    with progress(console) as tell:
        result = run(plan, origin, tell)
    _report(result, json_file, plots, markdown)


def _report(
    result: dict[str, Any], json_file: Path | None, plots: Path | None, markdown: Path | None
) -> None:
    """Print the tables and the verdicts, and write the reports that were asked for."""
    from vllm_dare.evaluation.quality_plots import write_plots
    from vllm_dare.evaluation.quality_report import markdown as markdown_report

    def draw(folder: Path) -> list[Path]:
        return write_plots(result, folder)

    def text(links: list[str]) -> str:
        return markdown_report(result, links)

    print_tables(result)
    write_reports(result, draw, text, json_file, plots, markdown)


def _inputs(plan: "Plan") -> list[Path]:
    others = (plan.items, plan.vocabulary, plan.interactions, plan.prompts)
    return [*plan.files.values(), *(path for path in others if path is not None)]
