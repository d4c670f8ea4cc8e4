"""`vllm-dare generate`: the nightly batch."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_dare.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_dare.generation.job import Job, Outcome

SOME_ROWS_FAILED = 3  # 2 is a usage error


class VerificationMode(StrEnum):
    """The choices of --verification."""

    strict = "strict"
    relaxed = "relaxed"


class Preset(StrEnum):
    """The choices of --preset, see `vllm_dare.verification.rule.PRESETS`."""

    content = "content"
    careful = "careful"
    fast = "fast"
    paper = "paper"
    fly = "fly"


def generate(
    *,
    model: options.Model,
    prompts: options.Prompts,
    output: Annotated[
        Path,
        typer.Option(
            help="JSON lines to write; with --engine ray, a directory of them.", rich_help_panel=options.INPUT
        ),
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take only the first rows.", rich_help_panel=options.INPUT)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew.", rich_help_panel=options.INPUT)
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Generate the rows again that failed; their prompts, and --max-model-len, may be mended.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    token_ids: Annotated[
        bool,
        typer.Option(
            "--token-ids",
            help="Write token ids too: pool documents without a tokenizer's rounding.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    pool: options.PoolOrUrl = None,
    verification: Annotated[
        VerificationMode | None,
        typer.Option(
            help="strict: the text that plain vLLM writes; relaxed: faster, wording may change.",
            show_default="strict; relaxed with --preset",
            rich_help_panel=options.DRAFTS,
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="How much may change: content is wording only.",
            show_default="content",
            rich_help_panel=options.DRAFTS,
        ),
    ] = None,
    draft_tokens: Annotated[
        int, typer.Option(min=1, max=128, help="Most draft tokens a step.", rich_help_panel=options.DRAFTS)
    ] = 16,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="Let what is written draft for later rows, and keep it in POOL/live for later runs; a "
            "missing pool is made.",
            rich_help_panel=options.DRAFTS,
        ),
    ] = False,
    no_drafts: Annotated[
        bool, typer.Option("--no-drafts", help="Plain vLLM, for comparison.", rich_help_panel=options.DRAFTS)
    ] = False,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Make each sampled row repeatable.", rich_help_panel=options.SAMPLING),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Rows generated at a time.", rich_help_panel=options.ENGINE)
    ] = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = None,
    engine_args: options.EngineArgs = "{}",
    compare_baseline: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Run the first N rows without drafts too, and compare.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the summary as JSON.", rich_help_panel=options.OUTPUT)
    ] = None,
    where: options.EngineChoice = options.Engine.local,
    ray_address: options.RayAddress = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many engines.",
            show_default="as many as there is room for",
            rich_help_panel=options.RAY,
        ),
    ] = None,
    worker_gpus: Annotated[
        float | None,
        typer.Option(
            min=0, help="GPUs of each.", show_default="1 if the cluster has any", rich_help_panel=options.RAY
        ),
    ] = None,
    worker_cpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Processors of each.",
            show_default="1 beside GPUs, else a whole machine's",
            rich_help_panel=options.RAY,
        ),
    ] = None,
    partition_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most rows that a worker writes as one file, and begins anew if it dies.",
            show_default="1000",
            rich_help_panel=options.RAY,
        ),
    ] = None,
) -> None:
    """Write a text for every prompt, with drafts from a retrieval pool.

    Rows are written as they finish. Stopped at any moment (Ctrl-C, a crash, a reboot), the same command
    goes on where it was. Exit status: 0 all rows written, 3 some rows failed (their `error` says why),
    1 the run failed, 130 interrupted.
    """
    from rich.console import Console

    from vllm_dare.generation.interruption import StartInterruptedError
    from vllm_dare.generation.job import Job, run_job
    from vllm_dare.generation.paths import check_folders, check_paths
    from vllm_dare.generation.settings import EngineSettings, SamplingSettings
    from vllm_dare.pool.files import replace_text
    from vllm_dare.store.location import read_location

    ray_options = {
        "ray_address": ray_address,
        "workers": workers,
        "worker_gpus": worker_gpus,
        "worker_cpus": worker_cpus,
        "partition_rows": partition_rows,
    }
    options.check_ray_options(where, **ray_options)
    on_ray = where is options.Engine.ray
    if on_ray and compare_baseline:
        raise typer.BadParameter("--compare-baseline needs --engine local.")
    (check_folders if on_ray else check_paths)(prompts, output, json_file)
    engine = EngineSettings(
        model=model,
        pool=read_location(pool),
        verification=_mode(verification, preset, no_drafts).value,
        preset=None if preset is None else preset.value,
        draft_tokens=0 if no_drafts else draft_tokens,
        learn=learn,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        dtype=dtype,
        engine_args=options.json_object(engine_args),
    )
    job = Job(
        prompts=prompts,
        output=output,
        engine=engine,
        sampling=SamplingSettings(max_tokens, temperature, top_p, top_k, seed),
        limit=limit,
        token_ids=token_ids,
        overwrite=overwrite,
        retry_failed=retry_failed,
        compare_rows=0 if no_drafts else compare_baseline,
    )
    console = Console(stderr=True)
    try:
        outcome = _run_on_ray(job, ray_options, console) if on_ray else run_job(job, console)
    except StartInterruptedError as interrupted:
        console.print(str(interrupted), highlight=False, soft_wrap=True)
        raise typer.Exit(interrupted.exit_status) from None
    if json_file is not None:
        replace_text(json_file, json.dumps(outcome.as_dict(), indent=2) + "\n")
    begun = output if on_ray else f"{output}.part"
    raise typer.Exit(_report(job, outcome, str(begun), Console(), console))


def _run_on_ray(job: "Job", ray_options: dict[str, Any], console: "Console") -> "Outcome":
    from vllm_dare.scale.job import PARTITION_ROWS, RaySettings, run_ray_job

    settings = RaySettings(
        ray_options["ray_address"],
        ray_options["workers"],
        ray_options["worker_gpus"],
        ray_options["worker_cpus"],
        ray_options["partition_rows"] or PARTITION_ROWS,
    )
    return run_ray_job(job, settings, console)


def _mode(verification: VerificationMode | None, preset: Preset | None, no_drafts: bool) -> VerificationMode:
    if preset is None:
        return verification or VerificationMode.strict
    if verification is VerificationMode.strict:
        raise typer.BadParameter("--preset and --verification strict exclude each other: leave out one.")
    if no_drafts:
        raise typer.BadParameter("--preset and --no-drafts exclude each other: leave out one.")
    return VerificationMode.relaxed


def _report(job: "Job", outcome: "Outcome", begun: str, out: "Console", err: "Console") -> int:
    """Print how the run ended and return the exit status."""
    from vllm_dare.generation.summary import comparison_table, outcome_table

    if outcome.status == "untouched":
        out.print(
            f"{job.output} is complete with {outcome.total} rows; use --overwrite to write it anew.",
            highlight=False,
            soft_wrap=True,
        )
    else:
        out.print(outcome_table(outcome))
    if (found := outcome.comparison) is not None:
        names = ("plain vLLM", f"drafts, {job.engine.verification}")
        title = f"The first {found.agreement.rows} documents"
        out.print(comparison_table(names, (found.baseline, found.drafts), (found.agreement,), title))
    if outcome.status == "interrupted":
        err.print(_how_to_go_on(job, outcome, begun), highlight=False, soft_wrap=True)
        return 128 + (outcome.signal or 0)
    if outcome.failed:
        err.print(
            f"{outcome.failed} of {outcome.total} rows failed: in {job.output} they have the finish_reason "
            '"error", and an `error` that says why; --retry-failed generates them again.',
            highlight=False,
            soft_wrap=True,
        )
        return SOME_ROWS_FAILED
    return 0


def _how_to_go_on(job: "Job", outcome: "Outcome", begun: str) -> str:
    done = outcome.earlier + outcome.figures.rows
    again = "the same command without --overwrite" if job.overwrite else "the same command again"
    return f"Interrupted: {done} of {outcome.total} rows are in {begun}; run {again} to go on."
