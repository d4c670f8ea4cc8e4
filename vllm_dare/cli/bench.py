"""`vllm-dare bench`: is it faster here, and by how much?"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vllm_dare.cli import options
from vllm_dare.errors import DareError

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_dare.evaluation.bench import Bench, Results

SOME_ARMS_FAILED = 3
_INTERRUPTED = "Interrupted; what follows is from the engines that were done."
_WIDTH = 140  # of tables that go to a file

Number = TypeVar("Number", int, float)


def bench(
    *,
    model: options.Model,
    prompts: options.Prompts,
    limit: Annotated[
        int, typer.Option(min=1, help="So many rows from the first.", rich_help_panel=options.INPUT)
    ] = 64,
    pool: options.Pool = None,
    arms: Annotated[
        str,
        typer.Option(
            help="What to compare: none, ngram, suffix, strict, relaxed; strict@4 always drafts 4 tokens, "
            "relaxed:fast has the preset fast.",
            rich_help_panel=options.DRAFTS,
        ),
    ] = "none,ngram,suffix,strict,relaxed",
    draft: Annotated[
        str,
        typer.Option(
            help="Most draft tokens a step; several: each is an arm of its own too, with that fixed length.",
            rich_help_panel=options.DRAFTS,
        ),
    ] = "16",
    concurrency: Annotated[
        str, typer.Option(help="Requests in flight.", rich_help_panel=options.SAMPLING)
    ] = "1,4,16,64",
    temperature: Annotated[
        str, typer.Option(help="0 is greedy.", rich_help_panel=options.SAMPLING)
    ] = "0,0.7",
    max_tokens: options.MaxTokens = 512,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Make sampled rows repeatable; the draft budget leaves such rows alone.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = None,
    engine_args: options.EngineArgs = "{}",
    repeats: Annotated[
        int, typer.Option(min=1, help="Times that each arm is measured.", rich_help_panel=options.OUTPUT)
    ] = 3,
    json_file: options.JsonFile = None,
    plots: options.Plots = None,
    markdown: options.Markdown = None,
) -> None:
    """Compare ways of decoding on your model, prompts and pool, in one run.

    Each arm gets an engine of its own, one after the other. What is finished survives Ctrl-C, in the table
    and in the JSON file. Exit status: 0 all arms measured, 3 some failed (the report says why), 1 the run
    failed, 130 interrupted.
    """
    from rich.console import Console

    from vllm_dare.evaluation.bench import Bench, Results, check
    from vllm_dare.evaluation.bench_arms import parse_arms
    from vllm_dare.generation.settings import EngineSettings, SamplingSettings

    drafts = _numbers("--draft", draft, int, 1)
    concurrencies = _numbers("--concurrency", concurrency, int, 1)
    plan = Bench(
        prompts=prompts,
        limit=limit,
        engine=EngineSettings(
            model=model,
            pool=pool,
            max_num_seqs=max(concurrencies),
            max_model_len=max_model_len,
            dtype=dtype,
            engine_args=options.json_object(engine_args),
        ),
        sampling=SamplingSettings(max_tokens=max_tokens, top_p=top_p, top_k=top_k, seed=seed),
        arms=parse_arms([name.strip() for name in arms.split(",")], drafts),
        max_draft=max(drafts),
        temperatures=_numbers("--temperature", temperature, float, 0),
        concurrencies=concurrencies,
        repeats=repeats,
    )
    _check_outputs(prompts, json_file, plots, markdown)
    plan = check(plan)
    console = Console(stderr=True)
    results = Results(plan)
    signal = _run(plan, results, json_file, console)
    _report(results, plots, markdown, console)
    raise typer.Exit(_exit_status(results, signal))


def _run(plan: "Bench", results: "Results", json_file: Path | None, console: "Console") -> int | None:
    """Run to the end or to a signal, whose number is returned; no process is left behind."""
    from vllm_dare.evaluation.bench import run
    from vllm_dare.evaluation.bench_progress import BenchProgress
    from vllm_dare.generation.interruption import Interruption, StartInterruptedError
    from vllm_dare.generation.paths import report_errors
    from vllm_dare.pool.files import replace_text

    def save() -> None:
        if json_file is not None:
            with report_errors("--json", json_file):
                replace_text(json_file, json.dumps(results.as_dict(), indent=1) + "\n")

    try:
        with Interruption(console), BenchProgress(plan, console) as progress:
            run(plan, results, save, progress.tell)
    except StartInterruptedError as interrupted:
        console.print(_INTERRUPTED, highlight=False)
        results.status = "interrupted"
        results.compare()
        save()
        return interrupted.exit_status - 128
    return None


def _report(results: "Results", plots: Path | None, report: Path | None, console: "Console") -> None:
    from rich.console import Console

    from vllm_dare.evaluation.bench_plots import write_plots
    from vllm_dare.evaluation.bench_report import failure_lines, markdown, tables
    from vllm_dare.evaluation.grid import stacked
    from vllm_dare.generation.paths import report_errors
    from vllm_dare.pool.files import replace_text

    found = results.as_dict()
    out = Console()
    if not out.is_terminal:
        out.width = _WIDTH
    for table in (part for grid in tables(found) for part in stacked(grid, out.width)):
        out.print(table)
    for line in failure_lines(found):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    pictures: list[Path] = []
    if plots is not None:
        with report_errors("--plots", plots):
            pictures = write_plots(found, plots)
    if report is not None:
        links = [os.path.relpath(picture, report.parent) for picture in pictures]
        with report_errors("--markdown", report):
            replace_text(report, markdown(found, links))


def _exit_status(results: "Results", signal: int | None) -> int:
    if signal is not None:
        return 128 + signal
    if not results.measurements:
        raise DareError("No arm could be measured; the reasons are above.")
    return SOME_ARMS_FAILED if results.failures else 0


def _check_outputs(prompts: Path, json_file: Path | None, plots: Path | None, markdown: Path | None) -> None:
    from vllm_dare.generation.paths import check_report_file, check_report_folder

    others = [prompts]
    for option, file in (("--json", json_file), ("--markdown", markdown)):
        if file is not None:
            check_report_file(option, file, others)
            others.append(file)
    if plots is not None:
        check_report_folder("--plots", plots)


def _numbers(option: str, text: str, kind: Callable[[str], Number], least: Number) -> list[Number]:
    """The distinct numbers of a comma-separated list, in its order.

    Raises:
        DareError: there is none, or one is not a number of this kind or too small.
    """
    try:
        numbers: list[Any] = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(least <= number < float("inf") for number in numbers):
        what = "whole numbers" if kind is int else "numbers"
        raise DareError(f"{option} takes {what} from {least} separated by commas, not {text!r}.")
    return list(dict.fromkeys(numbers))
