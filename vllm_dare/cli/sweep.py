"""The part of `vllm-dare evaluate` that generates: `--sweep`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vllm_dare.cli.evaluation_output import print_tables, progress, write_reports
from vllm_dare.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_dare.evaluation.quality import Plan
    from vllm_dare.evaluation.sweep import Sweep

NEEDED = ("--model", "--prompts", "--settings", "--output")


def check_sweep(variants: list[str] | None, given: Mapping[str, Any]) -> None:
    """Whether a sweep has what it needs, and no files of texts.

    Args:
        variants: the arguments NAME=FILE.
        given: the values of the options in `NEEDED`.

    Raises:
        ConfigError: see the message.
    """
    if variants:
        raise ConfigError("--sweep generates the texts itself: leave out NAME=FILE, or --sweep.")
    missing = [name for name in NEEDED if given[name] is None]
    if missing:
        raise ConfigError(f"--sweep needs {', '.join(missing)}, too.")


def run_sweep(
    sweep: "Sweep",
    plan: "Plan",
    origin: Mapping[str, Any],
    console: "Console",
    json_file: Path | None,
    plots: Path | None,
    markdown: Path | None,
) -> None:
    """Generate what is not there yet, compare, and write the reports."""
    from vllm_dare.evaluation.quality import evaluate
    from vllm_dare.evaluation.sweep import check, generate
    from vllm_dare.evaluation.sweep_engine import SweepInterruptedError, measurer
    from vllm_dare.evaluation.sweep_report import with_speed
    from vllm_dare.generation.interruption import StartInterruptedError
    from vllm_dare.generation.paths import check_report_folder

    sweep = check(sweep)
    check_report_folder("--output", sweep.output)
    try:
        speeds = generate(sweep, measurer(console))
    except (SweepInterruptedError, StartInterruptedError) as interrupted:
        console.print(str(interrupted), highlight=False, soft_wrap=True)
        raise typer.Exit(interrupted.exit_status) from None
    files = {setting.name: sweep.knowledge_file(setting) for setting in sweep.settings}
    with progress(console) as tell:
        result = evaluate(replace(plan, files=files), origin, tell)
    result = with_speed(result, speeds)
    report(result, json_file, plots, markdown)


def report(result: dict[str, Any], json_file: Path | None, plots: Path | None, markdown: Path | None) -> None:
    """Print the tables and the choice, and write the reports that were asked for."""
    from vllm_dare.evaluation.quality_plots import write_plots as write_quality_plots
    from vllm_dare.evaluation.quality_report import markdown as quality_markdown
    from vllm_dare.evaluation.sweep_plots import write_plots
    from vllm_dare.evaluation.sweep_report import markdown_section, speed_table

    def draw(folder: Path) -> list[Path]:
        return [*write_plots(result, folder), *write_quality_plots(result, folder)]

    def text(links: list[str]) -> str:
        return markdown_section(result) + quality_markdown(result, links)

    print_tables(result, [speed_table(result)], [result["choice"]["sentence"]])
    write_reports(result, draw, text, json_file, plots, markdown)
