"""The actor that holds an engine and writes partitions."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from vllm_dare.errors import DareError
from vllm_dare.generation.engine_thread import EngineThread
from vllm_dare.generation.meter import Counters, Figures
from vllm_dare.generation.output import CompleteRows
from vllm_dare.generation.partition_output import count_try, part_path, write_part
from vllm_dare.generation.prompts import PromptRow
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.scale.cluster import quiet_data, user_error
from vllm_dare.scale.prompts import decode_row
from vllm_dare.scale.resources import WorkerResources
from vllm_dare.verification.meters import Meters

if TYPE_CHECKING:
    import pyarrow as pa

_PARTITIONS_AT_A_TIME = 2  # of a worker: while one runs out, the next one fills the engine
_ENGINE_STOPPED = 1  # an exit status: Ray starts the actor again, and gives it its partitions anew
_MOST_TRIES = 10  # a row that kills its engine each time must not keep a cluster busy all night


@dataclass(frozen=True)
class WorkerJob:
    """What every worker of a run does.

    Attributes:
        output: the directory of the parts, the same on all machines.
        run: the run's number, see `PartitionedOutput`.
        token_ids: whether output rows carry their token ids.
    """

    engine: EngineSettings
    sampling: SamplingSettings
    output: Path
    run: int
    token_ids: bool


@dataclass(frozen=True)
class Report:
    """What a worker says of a finished partition.

    Attributes:
        figures: its rows, and vLLM's counters since the worker's last report; no time.
        up_at: when the worker's engine was up, in seconds since 1970.
        fault: what ends the run, in a sentence; None if nothing does.
    """

    figures: Figures = field(default_factory=Figures)
    up_at: float = 0.0
    fault: str | None = None

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Report":
        """The reverse of `encode`."""
        fields = json.loads(text)
        figures = fields["figures"]
        relaxed = figures.pop("relaxed")
        counters = Counters(**figures.pop("counters"))
        meters = None if relaxed is None else Meters(**relaxed)
        fields["figures"] = Figures(**figures, counters=counters, relaxed=meters)
        return cls(**fields)


class EngineWorker:
    """Ray Data makes one on each worker and calls it with one partition at a time, from two threads."""

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._engine = EngineThread(job.engine, job.sampling, lambda: os._exit(_ENGINE_STOPPED))
        self._told = Counters()
        self._lock = Lock()

    def __call__(self, partitions: "pa.Table") -> "pa.Table":
        """Generate and write a partition.

        Args:
            partitions: one row of `PromptRows.partitions`.

        Returns:
            One row, a `Report`.
        """
        import pyarrow as pa

        number, texts = partitions["partition"][0].as_py(), partitions["rows"][0].as_py()
        try:
            report = self._report(self._written(number, [decode_row(text) for text in texts]))
        except DareError as error:  # as data, so that the driver can tell its user in a sentence
            report = Report(fault=str(error))
        return pa.table({"report": [report.encode()]})

    def __del__(self) -> None:
        """Ray Data drops the object when no partition is left."""
        self._engine.close()

    def _written(self, number: int, rows: Sequence[PromptRow]) -> list[dict[str, Any]]:
        """The output rows of a partition, which are on disk now."""
        job = self._job
        part = part_path(job.output, job.run, number)
        if part.exists():  # its report was lost with the worker that wrote it
            return list(CompleteRows(part))
        if count_try(job.output, job.run, number) > _MOST_TRIES:
            raise DareError(
                f"The workers of partition {number}, which begins with the row {rows[0].id!r}, ended "
                f"{_MOST_TRIES} times before it was finished; Ray's logs say why; finished parts are kept, "
                "run the same command again to go on."
            )
        finished = self._engine.generate(rows)
        if not job.token_ids:
            finished = [{name: row[name] for name in row if name != "token_ids"} for row in finished]
        write_part(job.output, job.run, number, finished)
        return finished

    def _report(self, rows: Sequence[dict[str, Any]]) -> Report:
        with self._lock:  # each step is counted in one report
            so_far = self._engine.figures()
            news, self._told = so_far.counters - self._told, so_far.counters
        return Report(replace(Figures.of_rows(rows), counters=news), time.time() - so_far.seconds)


def run_workers(partitions: Any, job: WorkerJob, resources: WorkerResources) -> Iterator[Report]:
    """Have workers write partitions.

    Args:
        partitions: see `PromptRows.partitions`.
        job: what they do.
        resources: how many there are, and what each takes.

    Returns:
        A report for each partition, as they are finished.

    Raises:
        DareError: Ray gave up.
    """
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
