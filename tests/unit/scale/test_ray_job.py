"""The flow of a run on Ray, without Ray: workers are a function."""

import io
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vllm_dare.errors import DareError
from vllm_dare.generation.fingerprint import digest
from vllm_dare.generation.interruption import StartInterruptedError
from vllm_dare.generation.job import Job, Outcome
from vllm_dare.generation.meter import Counters, Figures
from vllm_dare.generation.partition_output import parts, rows_so_far, write_part
from vllm_dare.generation.prompts import PromptRow, read_prompts
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.scale import job as job_module
from vllm_dare.scale.job import RaySettings, run_ray_job
from vllm_dare.scale.prompts import RowFacts
from vllm_dare.scale.resources import WorkerResources
from vllm_dare.scale.worker import Report, WorkerJob

pytestmark = pytest.mark.usefixtures("signal_handlers")


class FakeRows:
    """Has the interface of `PromptRows`; a row's group is the first letter of its prompt."""

    def __init__(self, prompts: Path, limit: int | None, engine: EngineSettings) -> None:
        self.rows = list(read_prompts(prompts, limit))
        self.groups = np.array([ord(str(row.prompt)[0]) for row in self.rows], np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def facts(self) -> Iterator[RowFacts]:
        return (RowFacts(row.id, digest(row)) for row in self.rows)

    def partitions(self, partitions: Sequence[Any]) -> list[list[PromptRow]]:
        return [[self.rows[number] for number in numbers] for numbers in partitions]


class Workers:
    """Writes partitions; what happens before each can be set."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.bad = "bad"

    def run(self, partitions: Any, job: WorkerJob, resources: WorkerResources) -> Iterator[Report]:
        for number, rows in enumerate(partitions):
            if number in self.before:
                fault = self.before.pop(number)()
                if fault is not None:
                    yield Report(fault=fault)
            written = [self._row(row) for row in rows]
            write_part(job.output, job.run, number, written)
            yield Report(replace(Figures.of_rows(written), counters=Counters(tokens=len(rows))), up_at=1.0)

    def _row(self, row: PromptRow) -> dict[str, Any]:
        reason = "error" if row.prompt == self.bad else "stop"
        return {"id": row.id, "text": row.prompt, "finish_reason": reason, "completion_tokens": 1}


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    workers = Workers()
    monkeypatch.setattr(job_module, "connected", lambda address: nullcontext())
    monkeypatch.setattr(job_module, "read_rows", FakeRows)
    monkeypatch.setattr(job_module, "run_workers", workers.run)
    monkeypatch.setattr(job_module, "worker_resources", lambda *_: WorkerResources(1, 1, 0))
    return workers


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Twelve rows of three groups; one of them fails."""
    rows = [{"id": number, "prompt": f"{'abc'[number % 3]}{number}"} for number in range(11)]
    rows.append({"id": 11, "prompt": "bad"})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Job(prompts, tmp_path / "out", EngineSettings("m"), SamplingSettings())


def _run(job: Job, size: int = 3) -> Outcome:
    return run_ray_job(job, RaySettings(partition_rows=size), Console(file=io.StringIO()))


def _ids(job: Job) -> list[int]:
    return sorted(row["id"] for row in rows_so_far(job.output))


def test_every_row_is_written_once(job: Job) -> None:
    outcome = _run(job)
    assert (outcome.status, outcome.total, outcome.earlier, outcome.failed) == ("complete", 12, 0, 1)
    assert (outcome.figures.rows, outcome.figures.counters.tokens) == (12, 12)
    assert _ids(job) == list(range(12))
    assert (job.output / "_SUCCESS").exists()


def test_a_complete_output_is_left_alone(job: Job) -> None:
    _run(job)
    before = {part: part.read_bytes() for part in parts(job.output)}
    outcome = _run(job)
    assert (outcome.status, outcome.earlier, outcome.failed) == ("untouched", 12, 1)
    assert {part: part.read_bytes() for part in parts(job.output)} == before
    assert _run(replace(job, overwrite=True)).status == "complete"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished_and_the_next_run_goes_on(
    job: Job, workers: Workers, number: int
) -> None:
    workers.before[2] = lambda: os.kill(os.getpid(), number)
    outcome = _run(job)
    assert (outcome.status, outcome.signal, outcome.figures.rows) == ("interrupted", number, 6)
    assert len(_ids(job)) == 6 and not (job.output / "_SUCCESS").exists()
    outcome = _run(job, size=5)
    assert (outcome.status, outcome.earlier, outcome.figures.rows) == ("complete", 6, 6)
    assert _ids(job) == list(range(12))


def test_a_signal_before_the_first_row_is_asked_for(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "read_rows", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(StartInterruptedError) as interrupted:
        _run(job)
    assert interrupted.value.exit_status == 130


def test_a_fault_ends_the_run_and_keeps_what_is_finished(job: Job, workers: Workers) -> None:
    workers.before[1] = lambda: "The vLLM engine did not start."
    with pytest.raises(DareError, match="did not start"):
        _run(job)
    assert len(_ids(job)) == 3
    assert _run(job).earlier == 3
    assert _ids(job) == list(range(12))


def test_failed_rows_are_generated_again(job: Job, workers: Workers) -> None:
    _run(job)
    workers.bad = ""
    outcome = _run(replace(job, retry_failed=True))
    assert (outcome.status, outcome.earlier, outcome.failed) == ("complete", 11, 0)
    assert _ids(job) == list(range(12))


def test_rows_may_be_added_to_a_complete_output(job: Job) -> None:
    _run(job)
    with job.prompts.open("a") as file:
        file.write('{"id": 12, "prompt": "new"}\n')
    outcome = _run(job)
    assert (outcome.status, outcome.total, outcome.earlier) == ("complete", 13, 12)
    assert _ids(job) == list(range(13))


def test_rows_of_another_job_are_refused(job: Job) -> None:
    _run(job)
    job.prompts.write_text('{"id": 99, "prompt": "a"}\n')
    with pytest.raises(DareError, match="was begun with something else: the prompts"):
        _run(job)
    with pytest.raises(DareError, match="has 12 rows that are not in"):
        _run(replace(job, retry_failed=True))


def test_a_row_that_comes_twice_is_told(job: Job, workers: Workers) -> None:
    def double() -> None:
        first = parts(job.output)[0]
        (job.output / "part-0000-000000.jsonl").write_bytes(first.read_bytes())

    workers.before[1] = double
    with pytest.raises(DareError, match=r"lacks 0 of 12 rows, and has 15: it was changed by something else"):
        _run(job)


def test_repeated_ids_and_empty_prompts_are_refused(job: Job) -> None:
    job.prompts.write_text('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n')
    with pytest.raises(DareError, match=r'row 2 repeats the id "1"; ids must be unique'):
        _run(job)
    job.prompts.write_text("")
    with pytest.raises(DareError, match="has no rows"):
        _run(job)
    assert not job.output.exists()
