"""One batch run on a Ray cluster, from prompt files to a directory of parts."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

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
from vllm_dare.scale.cluster import connected, quiet_data, user_error
from vllm_dare.scale.prompts import PromptRows, read_rows
from vllm_dare.scale.resources import WorkerResources, worker_resources
from vllm_dare.scale.worker import EngineWorker, Report, WorkerJob

PARTITION_ROWS = 1000
_PARTITIONS_AT_A_TIME = 2  # of a worker: while one runs out, the next one fills the engine
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
            return _run(job, ray, console, stop)
        except KeyboardInterrupt:
            raise StartInterruptedError(stop.signal or signal.SIGINT) from None


def _run(job: Job, ray: RaySettings, console: Console, stop: _Stop) -> Outcome:
    fingerprint = Fingerprint(recorded_prompts(job.output))
    with console.status("Reading the prompts"):
        rows = read_rows(job.prompts, job.limit, _everywhere(job.engine))
        total = check_unique(rows.facts(), rows.facts(), str(job.prompts))
    if not total:
        raise DareError(f"The prompt file {job.prompts} has no rows.")
    for fact in rows.facts():
        fingerprint.add(fact.digest)
    if job.retry_failed:
        _check_same_ids(job, rows)
    settings = text_settings(job.engine, job.sampling, job.token_ids)
    output = PartitionedOutput.open(
        job.output, settings, fingerprint, overwrite=job.overwrite, retry_failed=job.retry_failed
    )
    try:
        outcome = _fill(job, ray, output, rows, console, stop)
        if outcome.status != "interrupted":
            _check_all_there(job, rows)
            output.mark_complete()
    finally:
        output.close()
    return outcome


def _check_same_ids(job: Job, rows: PromptRows) -> None:
    """Where prompts may have been mended, their fingerprint does not tell them from those of another job."""
    ids = IdSet(fact.id for fact in rows.facts())
    foreign = sum(row["id"] not in ids for row in rows_so_far(job.output))
    if foreign:
        raise DareError(
            f"{job.output} has {foreign} rows that are not in {job.prompts}; give the prompts that it was "
            "begun with, those of failed rows mended, or another --output."
        )


def _fill(
    job: Job, ray: RaySettings, output: PartitionedOutput, rows: PromptRows, console: Console, stop: _Stop
) -> Outcome:
    total = len(rows)
    todo = np.flatnonzero([fact.id not in output.done for fact in rows.facts()])
    earlier = total - len(todo)
    if output.retried:
        console.print(f"Generating {output.retried} rows again that failed.", highlight=False)
    if not len(todo):
        return Outcome("untouched" if output.was_complete else "complete", total, earlier, output.failed)
    if earlier:
        console.print(f"Going on after {earlier} of {total} rows.", highlight=False)
    output.mark_incomplete()
    resources = worker_resources(ray.workers, ray.cpus, ray.gpus, job.engine)
    size = partition_size(len(todo), resources.workers, ray.partition_rows)
    partitions = [todo[members] for members in pack(rows.groups[todo], size)]
    console.print(
        f"Generating {len(todo)} rows in {len(partitions)} partitions on {resources}", highlight=False
    )
    known = learned_so_far(job.engine)
    sum_of_all = _Total()
    try:
        _generate(job, resources, output, rows, partitions, console, sum_of_all, earlier)
    except KeyboardInterrupt:
        written = len(IdSet(row["id"] for row in rows_so_far(job.output))) - len(output.done)
        figures = replace(sum_of_all.figures(), rows=written)
        return Outcome("interrupted", total, earlier, output.failed, figures, signal=stop.signal)
    figures = sum_of_all.figures()
    if job.engine.learn:
        time.sleep(_LEARNED_SECONDS)
    learned = learned_since(known, job.engine, {})
    return Outcome("complete", total, earlier, output.failed + figures.failed, figures, learned=learned)


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


def _generate(
    job: Job,
    resources: WorkerResources,
    output: PartitionedOutput,
    rows: PromptRows,
    partitions: list[Rows],
    console: Console,
    total: "_Total",
    earlier: int,
) -> None:
    """Have the partitions written; ends with the run's first fault."""
    worker_job = WorkerJob(
        _everywhere(job.engine), job.sampling, job.output.absolute(), output.run, job.token_ids
    )
    with run_progress(console, len(rows), earlier) as progress:
        for report in _reports(rows.partitions(partitions), worker_job, resources):
            if report.fault is not None:
                raise DareError(report.fault)
            total.add(report)
            for _ in range(report.figures.rows):
                progress.advance(total)


def _reports(partitions: Any, job: WorkerJob, resources: WorkerResources) -> Iterator[Report]:
    compute = quiet_data().ActorPoolStrategy(
        size=resources.workers,
        max_tasks_in_flight_per_actor=_PARTITIONS_AT_A_TIME,
        max_concurrent_calls_per_actor=_PARTITIONS_AT_A_TIME,
        enable_true_multi_threading=True,
    )
    dataset = partitions.map_batches(
        EngineWorker,
        batch_size=None,
        batch_format="pyarrow",
        compute=compute,
        fn_constructor_args=[job],
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )
    dataset.set_name("vllm-dare-generate")  # as the dashboard calls it
    try:
        for row in dataset.iter_rows():
            yield Report.decode(row["report"])
    except Exception as error:  # Ray raises whatever its parts raise
        if (ours := user_error(error)) is not None:
            raise ours from None
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DareError(
            f"Ray gave up ({reason}); finished parts are kept, run the same command again to go on."
        ) from error


def _check_all_there(job: Job, rows: PromptRows) -> None:
    """The last check: every row once."""
    written = [row["id"] for row in rows_so_far(job.output)]
    ids = IdSet(written)
    missing = sum(fact.id not in ids for fact in rows.facts())
    if missing or len(written) != len(rows):
        raise DareError(
            f"{job.output} lacks {missing} of {len(rows)} rows, and has {len(written)}: it was changed by "
            "something else; run the same command again, or use --overwrite to write it anew."
        )


def _everywhere(engine: EngineSettings) -> EngineSettings:
    """The same, with paths that do not depend on where a worker starts."""
    model = str(Path(engine.model).absolute()) if Path(engine.model).exists() else engine.model
    return replace(engine, model=model, pool=None if engine.pool is None else engine.pool.absolute())
