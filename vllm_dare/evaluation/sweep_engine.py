"""The engines of a sweep: each generates the prompts once for each of its settings, and is timed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from vllm_dare.errors import DareError
from vllm_dare.evaluation.even_start import empty_prefix_cache, warm_up_rows
from vllm_dare.evaluation.sweep import Rows, Setting
from vllm_dare.generation.engine import start_engine, stop_engine
from vllm_dare.generation.interruption import Interruption
from vllm_dare.generation.meter import Figures, Meter
from vllm_dare.generation.prompts import PromptRow
from vllm_dare.generation.settings import EngineSettings, SamplingSettings

Keep = Callable[[Setting, Rows, Mapping[str, Any]], None]


class SweepInterruptedError(BaseException):
    """A signal came while texts were generated; settings that were done are kept.

    Attributes:
        exit_status: what a shell expects of a command that the signal ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__("Interrupted; finished settings are kept, run the same command again to go on.")
        self.exit_status = 128 + number


def measurer(console: Console) -> Callable[..., None]:
    """`measure`, telling ``console`` what it does."""

    def run(*arguments: Any) -> None:
        measure(console, *arguments)

    return run


def measure(
    console: Console,
    engine: EngineSettings,
    settings: Sequence[Setting],
    rows: Sequence[PromptRow],
    sampling: SamplingSettings,
    concurrency: int,
    keep: Keep,
) -> None:
    """Start an engine, and generate ``rows`` with each setting.

    A short warm-up goes before each, and the prefix cache is emptied, so that none profits from another.

    Args:
        console: where to say what is done.
        engine: with or without drafts.
        settings: whose keys every row carries.
        rows: the prompts; their own keys stay, such as the group.
        sampling: how tokens are chosen.
        concurrency: requests in flight.
        keep: takes the output rows, in the prompts' order, and the figures of each setting; see `speed`.

    Raises:
        DareError: the engine does not start, or all rows fail.
        StartInterruptedError, SweepInterruptedError: a signal came.
    """
    with Interruption(console) as interruption:
        what = "with drafts" if engine.draft_tokens else "without drafts"
        console.print(f"Starting vLLM {what}", highlight=False)
        llm = start_engine(replace(engine, max_num_seqs=concurrency))
        interruption.generating()
        try:
            for setting in settings:
                started = time.monotonic()
                found = _measure(llm, setting, rows, sampling, concurrency, interruption)
                keep(setting, *found)
                seconds = time.monotonic() - started
                console.print(
                    f"{setting.name}: {len(rows)} texts in {seconds:.0f} s", highlight=False, markup=False
                )
        finally:
            stop_engine(llm)


def speed(figures: Figures) -> dict[str, Any]:
    """What a setting cost: ``seconds`` of wall time and, of them, ``seconds_per_document``, the means
    ``tokens_per_second`` and ``tokens_per_step``, and the share of drafts that were kept, ``acceptance``.
    """
    documents = figures.documents_per_second
    return {
        "seconds": figures.seconds,
        "seconds_per_document": None if not documents else 1 / documents,
        "tokens_per_second": figures.tokens_per_second,
        "tokens_per_step": figures.tokens_per_step,
        "acceptance": figures.acceptance_rate,
    }


def _measure(
    llm: Any,
    setting: Setting,
    rows: Sequence[PromptRow],
    sampling: SamplingSettings,
    concurrency: int,
    interruption: Interruption,
) -> tuple[Rows, dict[str, Any]]:
    from vllm_dare.generation.runner import Runner  # needs vLLM, which start-up has made ready

    asked = [replace(row, metadata={**row.metadata, **setting.keys}) for row in rows]
    runner = Runner(llm, sampling, interruption.requested, window=concurrency)
    for _ in runner.run(iter(warm_up_rows(asked, concurrency, sampling.max_tokens))):
        pass
    empty_prefix_cache(llm, interruption.requested)
    meter = Meter(llm)
    done = {}
    for row in runner.run(iter(asked)):
        meter.count(row)
        done[row["id"]] = row
    figures = meter.figures()
    if interruption.signal is not None:
        raise SweepInterruptedError(interruption.signal)
    if figures.failed == figures.rows:
        raise DareError(
            f"All rows failed with the setting {setting.name}: {next(iter(done.values()))['error']}"
        )
    return [done[row.id] for row in rows], speed(figures)
