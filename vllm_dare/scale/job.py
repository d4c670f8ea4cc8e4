"""One batch run on a Ray cluster, from prompt files to a directory of parts."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np
from rich.console import Console

from vllm_dare.errors import DareError
from vllm_dare.generation.engine import check_model, check_pool
from vllm_dare.generation.fingerprint import Fingerprint
from vllm_dare.generation.ids import IdSet, check_unique
from vllm_dare.generation.interruption import StartInterruptedError
from vllm_dare.generation.job import Job, Outcome
from vllm_dare.generation.learned import learned_since, learned_so_far
from vllm_dare.generation.meter import Figures
from vllm_dare.generation.partition_output import PartitionedOutput, recorded_prompts, rows_so_far
from vllm_dare.generation.partitions import Rows, pack, partition_size
from vllm_dare.generation.progress import run_progress
from vllm_dare.generation.settings import EngineSettings, text_settings
from vllm_dare.scale.cluster import connected
from vllm_dare.scale.prompts import PromptRows, read_rows
from vllm_dare.scale.resources import worker_resources
from vllm_dare.scale.worker import Report, WorkerJob, run_workers

PARTITION_ROWS = 1000
_LEARNED_SECONDS = 5.0  # in which workers that have ended write down what they learned


@dataclass(frozen=True)
class RaySettings:
    """Where to run.

    Attributes:
        address: see `vllm_dare.scale.cluster.connected`.
        workers, gpus, cpus: see `vllm_dare.scale.resources.worker_resources`.
        partition_rows: the most rows of a partition.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    cpus: float | None = None
    partition_rows: int = PARTITION_ROWS


class _Stop:
    """The signal that is to end the run, if one came: the first raises KeyboardInterrupt, others nothing."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            # A run that was told to stop is about to end: one more Ctrl-C would only break into Ray's exit.
            for number, handler in before.items():
                signal.signal(number, handler if self.signal is None else signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            raise KeyboardInterrupt


def run_ray_job(job: Job, ray: RaySettings, console: Console) -> Outcome:
    """Write every row of ``job`` that is not there yet; progress goes to ``console``.

    Args:
        job: its output is a directory; all its paths are the same on every machine of the cluster.
        ray: where to run.
        console: for progress.

    Raises:
        DareError: a prompt row, the pool, the engine, the output or the cluster is unusable.
        StartInterruptedError: a signal came before the first row was asked for.
    """
    check_model(job.engine.model)
    if job.engine.pool is not None and job.engine.draft_tokens:
        check_pool(job.engine.pool, job.engine.model, job.engine.learn)
    stop = _Stop()
    with connected(ray.address), stop.listening():
        try:
            return _Run(job, ray, console, stop).outcome()
        except KeyboardInterrupt:
            raise StartInterruptedError(stop.signal or signal.SIGINT) from None


class _Total:
    """The figures of all workers together, until now."""

    def __init__(self) -> None:
        self._sum = Figures()
        self._up_at = math.inf

    def add(self, report: Report) -> None:
        self._sum += report.figures
        self._up_at = min(self._up_at, report.up_at)

    def figures(self) -> Figures:
        return replace(self._sum, seconds=max(time.time() - self._up_at, 0.0))


class _Run:
    """The part of a job in which the cluster is there."""

    def __init__(self, job: Job, ray: RaySettings, console: Console, stop: _Stop) -> None:
        self._job, self._ray = job, ray
        self._console, self._stop = console, stop
        self._total = _Total()

    def outcome(self) -> Outcome:
        """Write every row that is not there yet."""
        job = self._job
        fingerprint = Fingerprint(recorded_prompts(job.output))
        with self._console.status("Reading the prompts"):
            rows = read_rows(job.prompts, job.limit, _everywhere(job.engine))
            check_unique(rows.facts(), rows.facts(), str(job.prompts))
        if not len(rows):
            raise DareError(f"The prompt file {job.prompts} has no rows.")
        for fact in rows.facts():
            fingerprint.add(fact.digest)
        if job.retry_failed:
            self._check_same_ids(rows)
        settings = text_settings(job.engine, job.sampling, job.token_ids)
        output = PartitionedOutput.open(
            job.output, settings, fingerprint, overwrite=job.overwrite, retry_failed=job.retry_failed
        )
        try:
            outcome = self._fill(output, rows)
            if outcome.status != "interrupted":
                self._check_all_there(rows)
                output.mark_complete()
        finally:
            output.close()
        return outcome

    def _check_same_ids(self, rows: PromptRows) -> None:
        """Where prompts may have been mended, their fingerprint does not tell them from another job's."""
        ids = IdSet(fact.id for fact in rows.facts())
        foreign = sum(row["id"] not in ids for row in rows_so_far(self._job.output))
        if foreign:
            raise DareError(
                f"{self._job.output} has {foreign} rows that are not in {self._job.prompts}; give the "
                "prompts that it was begun with, those of failed rows mended, or another --output."
            )

    def _fill(self, output: PartitionedOutput, rows: PromptRows) -> Outcome:
        todo = np.flatnonzero([fact.id not in output.done for fact in rows.facts()])
        total, earlier = len(rows), len(rows) - len(todo)
        if output.retried:
            self._say(f"Generating {output.retried} rows again that failed.")
        if not len(todo):
            status: Literal["untouched", "complete"] = "untouched" if output.was_complete else "complete"
            return Outcome(status, total, earlier, output.failed)
        if earlier:
            self._say(f"Going on after {earlier} of {total} rows.")
        output.mark_incomplete()
        known = learned_so_far(self._job.engine)
        try:
            self._generate(output.run, rows, todo)
        except KeyboardInterrupt:
            written = sum(1 for _ in rows_so_far(self._job.output)) - len(output.done)
            figures = replace(self._total.figures(), rows=written)
            return Outcome("interrupted", total, earlier, output.failed, figures, signal=self._stop.signal)
        if self._job.engine.learn:
            time.sleep(_LEARNED_SECONDS)
        learned = learned_since(known, self._job.engine, {})
        figures = self._total.figures()
        return Outcome("complete", total, earlier, output.failed + figures.failed, figures, learned=learned)

    def _generate(self, run: int, rows: PromptRows, todo: Rows) -> None:
        """Have the rows of these numbers written; ends with the first fault."""
        job, ray = self._job, self._ray
        resources = worker_resources(ray.workers, ray.cpus, ray.gpus, job.engine)
        size = partition_size(len(todo), resources.workers, ray.partition_rows)
        partitions = [todo[members] for members in pack(rows.groups[todo], size)]
        self._say(f"Generating {len(todo)} rows in {len(partitions)} partitions on {resources}")
        worker_job = WorkerJob(
            _everywhere(job.engine), job.sampling, job.output.absolute(), run, job.token_ids
        )
        with run_progress(self._console, len(rows), len(rows) - len(todo)) as progress:
            for report in run_workers(rows.partitions(partitions), worker_job, resources):
                if report.fault is not None:
                    raise DareError(report.fault)
                self._total.add(report)
                for _ in range(report.figures.rows):
                    progress.advance(self._total)

    def _check_all_there(self, rows: PromptRows) -> None:
        """The last check: every row once."""
        written = [row["id"] for row in rows_so_far(self._job.output)]
        ids = IdSet(written)
        missing = sum(fact.id not in ids for fact in rows.facts())
        if missing or len(written) != len(rows):
            raise DareError(
                f"{self._job.output} lacks {missing} of {len(rows)} rows, and has {len(written)}: it was "
                "changed by something else; run the same command again, or use --overwrite to write it anew."
            )

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def _everywhere(engine: EngineSettings) -> EngineSettings:
    """The same, with paths that do not depend on where a worker starts."""
    model = str(Path(engine.model).absolute()) if Path(engine.model).exists() else engine.model
    pool = engine.pool.absolute() if isinstance(engine.pool, Path) else engine.pool
    return replace(engine, model=model, pool=pool)
