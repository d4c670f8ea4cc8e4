"""One batch run from prompt file to output file."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vllm_dare.errors import ConfigError, DareError
from vllm_dare.generation.compare import Agreement, Baseline, agreement, run_baseline
from vllm_dare.generation.engine import check_model, check_pool, open_router, start_engine, stop_engine
from vllm_dare.generation.fingerprint import Fingerprint
from vllm_dare.generation.ids import IdSet, check_unique
from vllm_dare.generation.interruption import Interruption
from vllm_dare.generation.learned import Learned, end_learning, learned_since, learned_so_far
from vllm_dare.generation.meter import Figures, Meter
from vllm_dare.generation.output import (
    CompleteRows,
    OutputFile,
    check_finished,
    is_begun,
    recorded_prompts,
    rows_so_far,
)
from vllm_dare.generation.progress import run_progress
from vllm_dare.generation.prompts import PromptRow, read_prompts
from vllm_dare.generation.settings import EngineSettings, SamplingSettings, text_settings


@dataclass(frozen=True)
class Job:
    """What to generate.

    Attributes:
        prompts: the prompt file.
        output: the file to write; ``OUTPUT.part`` until every row is there.
        limit: take only the first rows; None takes all.
        token_ids: whether output rows carry their token ids.
        overwrite: begin anew instead of going on with, or keeping, what is there.
        retry_failed: generate the rows again that are there as errors.
        compare_rows: run so many rows without drafts first, to compare.
    """

    prompts: Path
    output: Path
    engine: EngineSettings
    sampling: SamplingSettings
    limit: int | None = None
    token_ids: bool = False
    overwrite: bool = False
    retry_failed: bool = False
    compare_rows: int = 0

    def __post_init__(self) -> None:
        if self.overwrite and self.retry_failed:
            raise ConfigError("--overwrite and --retry-failed exclude each other: leave out one of them.")

    def rows(self) -> Iterator[PromptRow]:
        """The job's rows, read anew."""
        return read_prompts(self.prompts, self.limit)


@dataclass(frozen=True)
class Comparison:
    """The same rows with plain vLLM and with drafts.

    Attributes:
        baseline, drafts: see `Figures.as_dict`.
        agreement: how alike the texts are.
    """

    baseline: dict[str, Any]
    drafts: dict[str, Any]
    agreement: Agreement

    @property
    def speed_up(self) -> float:
        """Documents a second with drafts, as a multiple of those without."""
        return float(
            (self.drafts["documents_per_second"] or 0) / (self.baseline["documents_per_second"] or 1)
        )


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: ``complete``, ``interrupted``, or ``untouched`` where the output was complete before.
        total: rows of the job.
        earlier: rows that earlier runs had finished.
        failed: rows of the output that are errors, earlier ones included.
        figures: what this run did.
        comparison: if one was asked for and made.
        signal: what interrupted the run.
        learned: what the run added to its pool; None if it was not to learn.
    """

    status: Literal["complete", "interrupted", "untouched"]
    total: int
    earlier: int
    failed: int
    figures: Figures = field(default_factory=Figures)
    comparison: Comparison | None = None
    signal: int | None = None
    learned: Learned | None = None

    def as_dict(self) -> dict[str, Any]:
        result = {name: getattr(self, name) for name in ("status", "total", "earlier", "failed")}
        result["figures"] = self.figures.as_dict()
        if self.comparison is not None:
            result["comparison"] = asdict(self.comparison) | {"speed_up": self.comparison.speed_up}
        if self.learned is not None:
            result["learned"] = asdict(self.learned)
        return result


def run_job(job: Job, console: Console) -> Outcome:
    """Write every row of ``job`` that is not there yet; progress goes to ``console``.

    Raises:
        DareError: a prompt row, the pool, the engine or the output file is unusable.
        StartInterruptedError: a signal came before the engine was up.
    """
    with Interruption(console) as interruption:
        return _run(job, console, interruption)


def _run(job: Job, console: Console, interruption: Interruption) -> Outcome:
    check_model(job.engine.model)
    if job.engine.pool is not None and job.engine.draft_tokens:
        check_pool(job.engine.pool, job.engine.model, job.engine.learn)
    fingerprint = Fingerprint(recorded_prompts(job.output))
    with console.status("Checking the prompts"):
        total = check_unique(fingerprint.watch(job.rows()), job.rows(), str(job.prompts))
    if not total:
        raise DareError(f"The prompt file {job.prompts} has no rows.")
    settings = text_settings(job.engine, job.sampling, job.token_ids)
    if job.retry_failed:
        _check_same_ids(job)
    if job.output.exists() and not job.overwrite and not is_begun(job.output):
        check_finished(job.output, settings, fingerprint, retry_failed=job.retry_failed)
        outcome = _untouched(job, total)
        if not (job.retry_failed and outcome.failed):
            return outcome
    file = OutputFile.open(
        job.output, settings, fingerprint, overwrite=job.overwrite, retry_failed=job.retry_failed
    )
    try:
        outcome = _fill(job, file, total, console, interruption)
    except BaseException:
        file.abandon()
        raise
    file.finish() if outcome.status == "complete" else file.close()
    return outcome


def _check_same_ids(job: Job) -> None:
    """Where prompts may have been mended, their fingerprint does not tell them from those of another job."""
    ids = IdSet(row.id for row in job.rows())
    foreign = sum(row["id"] not in ids for row in rows_so_far(job.output))
    if foreign:
        raise DareError(
            f"{job.output} has {foreign} rows that are not in {job.prompts}; give the prompts that it was "
            "begun with, those of failed rows mended, or another --output."
        )


def _untouched(job: Job, total: int) -> Outcome:
    rows = CompleteRows(job.output)
    done = IdSet(row["id"] for row in rows)
    missing = sum(row.id not in done for row in job.rows())
    if missing:
        raise DareError(
            f"{job.output} exists but lacks {missing} of the {total} rows of {job.prompts}; use --overwrite "
            "to write it anew, or another --output."
        )
    return Outcome("untouched", total, earlier=total, failed=rows.failed)


def _fill(job: Job, file: OutputFile, total: int, console: Console, interruption: Interruption) -> Outcome:
    if file.dropped_bytes:
        console.print(
            f"Cut {file.dropped_bytes} bytes of an unfinished row off {file.part}.", highlight=False
        )
    earlier = total - sum(row.id not in file.done for row in job.rows()) if len(file.done) else 0
    if file.retried:
        console.print(f"Generating {file.retried} rows again that failed.", highlight=False)
    if earlier:
        console.print(f"Going on after {earlier} of {total} rows.", highlight=False)
    if earlier == total:
        return Outcome("complete", total, earlier, file.failed)
    todo = (row for row in job.rows() if row.id not in file.done)
    sample = list(islice(todo, job.compare_rows))
    baseline = None
    if sample:
        # a plain line: what vLLM itself writes to stderr would stick to a spinner
        console.print(f"Generating {len(sample)} rows with plain vLLM, to compare", highlight=False)
        baseline = run_baseline(sample, job.engine, job.sampling)
    console.print("Starting vLLM", highlight=False)
    llm = start_engine(job.engine)
    interruption.generating()
    known = learned_so_far(job.engine)
    try:
        run = _Run(job, file, llm, interruption, console=console, total=total, earlier=earlier)
        outcome = run.outcome(sample, todo, baseline)
        end = end_learning(llm, job.engine)
    finally:
        stop_engine(llm)
    return replace(outcome, learned=learned_since(known, job.engine, end))


class _Run:
    """The part of a job in which the engine is up."""

    def __init__(
        self,
        job: Job,
        file: OutputFile,
        llm: Any,
        interruption: Interruption,
        *,
        console: Console,
        total: int,
        earlier: int,
    ) -> None:
        from vllm_dare.generation.runner import Runner  # needs vLLM, which start-up has made ready

        self._job, self._file, self._llm = job, file, llm
        self._total, self._earlier = total, earlier
        self._interruption = interruption
        self._runner = Runner(llm, job.sampling, self._interruption.requested, router=open_router(job.engine))
        self._progress = run_progress(console, total, earlier)
        self._meter = Meter(llm)

    def outcome(
        self, sample: list[PromptRow], rest: Iterator[PromptRow], baseline: Baseline | None
    ) -> Outcome:
        """Write the sample's rows, timed on their own against the baseline, then the rest."""
        comparison = None
        with self._progress:
            if baseline is not None:
                comparison = self._compare(sample, baseline)
            for _ in self._write(rest):
                pass
            figures = self._meter.figures()
        complete = self._earlier + figures.rows == self._total
        return Outcome(
            "complete" if complete else "interrupted",
            self._total,
            self._earlier,
            self._file.failed + figures.failed,
            figures,
            comparison,
            None if complete else self._interruption.signal,
        )

    def _compare(self, sample: list[PromptRow], baseline: Baseline) -> Comparison | None:
        meter = Meter(self._llm)
        rows = []
        for row in self._write(iter(sample)):
            meter.count(row)
            rows.append(row)
        figures = meter.figures().as_dict()
        if len(rows) < len(sample):
            return None
        return Comparison(dict(baseline.figures), figures, agreement(baseline.rows, rows))

    def _write(self, rows: Iterator[PromptRow]) -> Iterator[dict[str, Any]]:
        for row in self._runner.run(rows):
            self._file.append(row if self._job.token_ids else _without_token_ids(row))
            self._meter.count(row)
            self._progress.advance(self._meter)
            yield row


def _without_token_ids(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "token_ids"}
