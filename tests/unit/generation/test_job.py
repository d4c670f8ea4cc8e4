"""The flow of a batch run, with a fake engine."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console

from vllm_dare.errors import DareError
from vllm_dare.generation import job as job_module
from vllm_dare.generation.compare import Baseline
from vllm_dare.generation.interruption import StartInterruptedError
from vllm_dare.generation.job import Job, Outcome, run_job
from vllm_dare.generation.output import OutputFile
from vllm_dare.generation.prompts import PromptRow
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.lock import has_older_readers
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.pool.writer import PoolContent, write_pool
from vllm_dare.routing.router import Query, Router

pytestmark = pytest.mark.usefixtures("signal_handlers")


class FakeLLM:
    """An engine without a model, and without counters."""

    def get_metrics(self) -> list[object]:
        return []


class FakeRunner:
    """Has the interface of `vllm_dare.generation.runner.Runner`, but needs no vLLM.

    A row whose prompt is "bad" fails; ``after_row`` is called with the number of rows done.
    """

    after_row: Callable[[int], None] = staticmethod(lambda done: None)

    routers: ClassVar[list[Router | None]] = []

    def __init__(
        self, llm: Any, sampling: Any, stopped: Callable[[], bool], router: Router | None = None
    ) -> None:
        self._stopped = stopped
        self.routers.append(router)
        self._done = 0

    def run(self, rows: Iterator[PromptRow]) -> Iterator[dict[str, Any]]:
        while not self._stopped() and (row := next(rows, None)) is not None:
            yield self._finish(row)
            self._done += 1
            self.after_row(self._done)

    def _finish(self, row: PromptRow) -> dict[str, Any]:
        prompt = str(row.prompt)
        failed = prompt == "bad"
        token_ids = [] if failed else [ord(letter) for letter in reversed(prompt)]
        return {
            "id": row.id,
            "text": "" if failed else prompt[::-1],
            "prompt_tokens": len(prompt),
            "completion_tokens": len(token_ids),
            "finish_reason": "error" if failed else "stop",
            "token_ids": token_ids,
        }


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    runner = type("Runner", (FakeRunner,), {"routers": []})
    module = ModuleType("vllm_dare.generation.runner")
    module.Runner = runner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(job_module, "start_engine", lambda settings: FakeLLM())
    monkeypatch.setattr(job_module, "stop_engine", lambda llm: None)
    return runner


@pytest.fixture
def job(tmp_path: Path) -> Job:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": number, "prompt": f"prompt {number}"} for number in range(10)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Job(prompts, tmp_path / "out.jsonl", EngineSettings("m"), SamplingSettings())


def _run(job: Job) -> Outcome:
    return run_job(job, Console(file=io.StringIO()))


def _ids(path: Path) -> list[Any]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_every_row_is_written(job: Job) -> None:
    outcome = _run(job)
    assert (outcome.status, outcome.total, outcome.earlier, outcome.failed) == ("complete", 10, 0, 0)
    assert _ids(job.output) == list(range(10))
    assert "token_ids" not in job.output.read_text()


def test_token_ids_are_written_where_wanted(job: Job) -> None:
    _run(replace(job, token_ids=True, limit=1))
    assert json.loads(job.output.read_text())["token_ids"][0] == ord("0")


def test_a_complete_output_is_left_alone(job: Job) -> None:
    _run(job)
    before = job.output.stat()
    assert _run(job).status == "untouched"
    after = job.output.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )
    assert _run(replace(job, overwrite=True)).status == "complete"
    assert job.output.stat().st_ino != before.st_ino


def test_an_output_that_lacks_rows_is_not_taken_for_complete(job: Job) -> None:
    _run(replace(job, limit=4))
    with pytest.raises(DareError, match=r"lacks 6 of the 10 rows .* --overwrite"):
        _run(job)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_the_next_one_goes_on(
    job: Job, fake_engine: type[FakeRunner], number: int
) -> None:
    fake_engine.after_row = staticmethod(lambda done: os.kill(os.getpid(), number) if done == 4 else None)
    outcome = _run(job)
    assert (outcome.status, outcome.signal, outcome.figures.rows) == ("interrupted", number, 4)
    assert not job.output.exists()
    fake_engine.after_row = staticmethod(lambda done: None)
    outcome = _run(job)
    assert (outcome.status, outcome.earlier, outcome.figures.rows) == ("complete", 4, 6)
    assert _ids(job.output) == list(range(10))


def test_a_signal_while_the_engine_starts_ends_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(settings: EngineSettings) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            raise DareError("The vLLM engine did not start.") from None

    monkeypatch.setattr(job_module, "start_engine", start)
    with pytest.raises(StartInterruptedError):
        _run(job)


def test_a_crash_keeps_the_rows_before_it(job: Job, fake_engine: type[FakeRunner]) -> None:
    def crash(done: int) -> None:
        if done == 7:
            raise DareError("The engine stopped.")

    fake_engine.after_row = staticmethod(crash)
    with pytest.raises(DareError):
        _run(job)
    fake_engine.after_row = staticmethod(lambda done: None)
    assert _run(job).earlier == 7
    assert _ids(job.output) == list(range(10))


def test_a_run_that_stopped_before_the_last_step_needs_no_engine(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "finish", OutputFile.close)
        _run(job)
    monkeypatch.delattr(job_module, "start_engine")
    assert _run(job).status == "complete"
    assert _ids(job.output) == list(range(10))


def test_prompts_may_be_added_to_an_unfinished_run(job: Job, fake_engine: type[FakeRunner]) -> None:
    fake_engine.after_row = staticmethod(lambda done: os.kill(os.getpid(), signal.SIGINT))
    _run(job)
    fake_engine.after_row = staticmethod(lambda done: None)
    with job.prompts.open("a") as file:
        file.write('{"id": "new", "prompt": "p"}\n')
    assert _run(job).total == 11
    assert _ids(job.output) == [*range(10), "new"]


def test_failed_rows_are_counted_again_by_the_run_that_goes_on(
    job: Job, fake_engine: type[FakeRunner]
) -> None:
    job.prompts.write_text('{"id": 1, "prompt": "bad"}\n{"id": 2, "prompt": "good"}\n')
    fake_engine.after_row = staticmethod(lambda done: os.kill(os.getpid(), signal.SIGINT))
    assert _run(job).failed == 1
    outcome = _run(job)
    assert (outcome.failed, outcome.figures.failed) == (1, 0)


def test_failed_rows_are_generated_again_once_their_prompts_are_mended(job: Job) -> None:
    rows = job.prompts.read_text()
    job.prompts.write_text(rows.replace("prompt 3", "bad"))
    assert _run(job).failed == 1
    assert _run(job).status == "untouched"
    job.prompts.write_text(rows)
    outcome = _run(replace(job, retry_failed=True))
    assert (outcome.status, outcome.earlier, outcome.figures.rows, outcome.failed) == ("complete", 9, 1, 0)
    assert _ids(job.output) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 3]
    assert _run(job).status == "untouched"
    assert _run(replace(job, retry_failed=True)).status == "untouched"


def test_a_retry_does_not_mix_the_rows_of_two_jobs(job: Job) -> None:
    _run(job)
    before = sorted(job.output.parent.iterdir())
    job.prompts.write_text(job.prompts.read_text().replace('"id": 3', '"id": "other"'))
    with pytest.raises(DareError, match=r"has 1 rows that are not in .*prompts.jsonl"):
        _run(replace(job, retry_failed=True))
    assert sorted(job.output.parent.iterdir()) == before


def test_everything_or_what_failed_is_generated_again(job: Job) -> None:
    with pytest.raises(DareError, match="--overwrite and --retry-failed exclude each other"):
        replace(job, overwrite=True, retry_failed=True)


def test_bad_prompts_are_found_before_the_engine_starts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(job_module, "start_engine")
    with job.prompts.open("a") as file:
        file.write('{"id": 3, "prompt": "again"}\n')
    with pytest.raises(DareError, match="row 11 repeats the id 3"):
        _run(job)
    assert not job.output.exists()


def test_a_missing_pool_is_found_before_the_engine_starts(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(job_module, "start_engine")
    with pytest.raises(DareError, match="pool"):
        _run(replace(job, engine=EngineSettings("m", pool=tmp_path / "pool")))


def test_the_runner_knows_what_the_pool_knows(
    job: Job, fake_engine: type[FakeRunner], tmp_path: Path
) -> None:
    _run(job)
    content = PoolContent(
        tokenizer=TokenizerInfo(name="numbers", fingerprint="0123456789abcdef", vocab_size=64),
        groups={},
        global_documents=[PoolDocument(np.arange(5, dtype=np.int32))],
        assignments=[(entity_hash("user", "7"), "users/1")],
        provenance="external",
        model=None,
    )
    write_pool(content, tmp_path / "pool")
    for draft_tokens in (16, 0):
        engine = EngineSettings("m", pool=tmp_path / "pool", draft_tokens=draft_tokens)
        _run(replace(job, engine=engine, overwrite=True))
    without, router, undrafted = fake_engine.routers
    assert without is undrafted is None
    write_pool(replace(content, assignments=None), tmp_path / "pool", overwrite=True)
    assert not has_older_readers(tmp_path / "pool")  # the router does not keep the pool's files
    assert router is not None
    assert router.route(Query(user="7")).group == "users/1"


def test_comparison_with_the_baseline(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def baseline(rows: Any, engine: Any, sampling: Any) -> Baseline:
        runner = FakeRunner(None, None, lambda: False)
        found = list(runner.run(iter(rows)))
        asked.extend(row["id"] for row in found)
        return Baseline({"documents_per_second": 1.0}, found)

    monkeypatch.setattr(job_module, "run_baseline", baseline)
    outcome = _run(replace(job, compare_rows=4))
    assert asked == [0, 1, 2, 3]
    assert _ids(job.output) == list(range(10))
    assert outcome.comparison is not None
    assert outcome.comparison.drafts["rows"] == 4
    assert outcome.comparison.agreement.same_texts == 1
    assert outcome.comparison.speed_up > 0
    assert json.loads(json.dumps(outcome.as_dict()))["comparison"]["agreement"]["rows"] == 4


def test_an_empty_prompt_file_is_refused(job: Job) -> None:
    job.prompts.write_text("")
    with pytest.raises(DareError, match="has no rows"):
        _run(job)


def _change_a_prompt(job: Job) -> None:
    job.prompts.write_text(job.prompts.read_text().replace("prompt 3", "another prompt"))


def test_a_finished_output_does_not_pass_for_other_prompts(job: Job) -> None:
    _run(job)
    _change_a_prompt(job)
    with pytest.raises(
        DareError, match=r"the prompts \(other rows then\); use --overwrite .* another --output"
    ):
        _run(job)
    with pytest.raises(DareError, match=r"the prompts \(10 rows then, 4 now\)"):
        _run(replace(job, limit=4))


def test_a_finished_output_does_not_pass_for_other_settings(job: Job) -> None:
    _run(job)
    with pytest.raises(DareError, match=r"temperature \(0.0 then, 0.7 now\); use --overwrite"):
        _run(replace(job, sampling=SamplingSettings(temperature=0.7)))


def test_a_finished_output_without_its_settings_cannot_be_compared(job: Job) -> None:
    _run(job)
    job.output.with_name("out.jsonl.settings.json").unlink()
    with pytest.raises(DareError, match="cannot be compared with this run"):
        _run(job)


def test_rows_in_another_order_are_the_same_prompts(job: Job) -> None:
    _run(job)
    job.prompts.write_text("\n".join(reversed(job.prompts.read_text().splitlines())))
    assert _run(job).status == "untouched"


def test_an_unfinished_run_does_not_go_on_with_other_prompts(job: Job, fake_engine: type[FakeRunner]) -> None:
    fake_engine.after_row = staticmethod(lambda done: os.kill(os.getpid(), signal.SIGINT))
    _run(job)
    _change_a_prompt(job)
    with pytest.raises(DareError, match=r"was begun with something else: the prompts \(other rows then\)"):
        _run(job)


def test_a_failed_start_leaves_nothing_behind(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(settings: EngineSettings) -> None:
        raise DareError("The vLLM engine did not start.")

    monkeypatch.setattr(job_module, "start_engine", start)
    with pytest.raises(DareError):
        _run(job)
    assert os.listdir(job.output.parent) == ["prompts.jsonl"]
