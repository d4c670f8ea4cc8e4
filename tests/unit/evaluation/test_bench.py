"""The course of a bench, with a stand-in for the engine's process."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from rich.console import Console

from vllm_dare.cli.bench import _run as run_command
from vllm_dare.errors import DareError
from vllm_dare.evaluation import bench as module
from vllm_dare.evaluation.bench import Bench, Results, check, run
from vllm_dare.evaluation.bench_arms import parse_arms
from vllm_dare.generation.settings import EngineSettings, SamplingSettings

# Does what bench_child does, at once: the arm's length in letters is its speed. The arm ngram dies.
_CHILD = """
import json, sys
from pathlib import Path
from vllm_dare.evaluation.bench_statistics import Measurement
task, events = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]).open("a")
def emit(kind, **values):
    print(json.dumps({"event": kind, **values}), file=events, flush=True)
emit("started", start_seconds=1.0, device="cpu", suffix_texts=0)
for arm, keys in task["arms"]:
    if arm == "ngram":
        print("Traceback\\nValueError: it broke")
        sys.exit(1)
    if arm == "relaxed":
        emit("failed", reason="No memory.")
        sys.exit(1)
    for temperature, concurrency in task["cells"]:
        found = dict.fromkeys(Measurement.__dataclass_fields__)
        found |= {"arm": arm, "temperature": temperature, "concurrency": concurrency}
        found |= {"repeat": task["repeat"], "rows": 2, "failed": 0, "tokens_per_second": 10.0 * len(arm)}
        texts = [{"id": 1, "token_ids": [1, 2], "finish_reason": "stop"}]
        emit("measured", measurement=found, texts=texts)
emit("memory", peak_bytes=100 + task["repeat"])
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"id": {i}, "prompt": "a"}}\n' for i in range(4)))
    return Bench(
        prompts=prompts,
        limit=64,
        engine=EngineSettings("some/model", max_num_seqs=4),
        sampling=SamplingSettings(),
        arms=parse_arms(["none", "strict"], [16]),
        max_draft=16,
        temperatures=[0.0, 0.7],
        concurrencies=[1, 4],
        repeats=2,
    )


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the engine's process, and collects the tasks that it got."""
    tasks = []

    def start(folder: Path, log: Any) -> "subprocess.Popen[bytes]":
        tasks.append(json.loads((folder / "task.json").read_text()))
        command = [sys.executable, "-c", _CHILD, str(folder / "task.json"), str(folder / "events.jsonl")]
        return subprocess.Popen(command, stdout=log, stderr=log)

    monkeypatch.setattr(module, "_start", start)
    return tasks


def _run(bench: Bench) -> tuple[Results, list[int]]:
    """The results, and how many measurements were there at each save."""
    results, saves = Results(bench), []
    run(bench, results, lambda: saves.append(len(results.measurements)), lambda kind, event: None)
    return results, saves


def test_a_run_in_turns_is_saved_engine_by_engine(bench: Bench, child: list[dict[str, Any]]) -> None:
    results, saves = _run(bench)
    assert [(task["repeat"], task["arms"][0][0]) for task in child] == [
        (1, "none"),
        (1, "strict"),
        (2, "strict"),
        (2, "none"),
    ]
    cells = [[0.0, 1], [0.0, 4], [0.7, 1], [0.7, 4]]
    assert (child[0]["cells"], child[2]["cells"]) == (cells, cells[::-1])
    assert saves == [4, 8, 12, 16, 16]
    content = results.as_dict()
    assert content["status"] == "complete"
    assert [record["arm"] for record in content["summary"]] == ["none"] * 4 + ["strict"] * 4
    strict = content["summary"][-1]
    assert strict["speed_up"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert strict["same_texts"]["median"] == 1.0, "also in repeat 2, where the baseline came later"
    assert strict["peak_bytes"] == 102
    json.dumps(content)


def test_an_engine_that_dies_is_left_out_and_the_others_go_on(
    bench: Bench, child: list[dict[str, Any]]
) -> None:
    results, _ = _run(replace(bench, arms=parse_arms(["ngram", "none", "strict", "relaxed"], [16])))
    assert results.failures == {
        "ngram": "The engine's process ended with status 1: ValueError: it broke",
        "strict": "No memory.",
        "relaxed": "No memory.",
    }
    assert [task["arms"][0][0] for task in child] == ["ngram", "none", "strict", "none"]
    assert {found.arm for found in results.measurements} == {"none", "strict"}
    assert results.engines[0]["log"] == ["Traceback", "ValueError: it broke"]


def test_a_peer_that_is_not_installed_is_never_started(
    bench: Bench, child: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    results, _ = _run(replace(bench, arms=parse_arms(["none", "suffix"], [16]), repeats=1))
    assert "pip install 'vllm-dare[peers]'" in results.failures["suffix"]
    assert len(child) == 1


def test_the_limit_is_what_there_is(bench: Bench) -> None:
    assert check(bench).limit == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"concurrencies": [8]}, "--concurrency 8 needs as many prompts at least, but there are 4"),
        ({"prompts": Path("nowhere.jsonl")}, "There is no prompt file nowhere.jsonl"),
        ({"engine": EngineSettings("/nowhere")}, "There is no directory /nowhere"),
        ({"engine": EngineSettings("m", pool=Path("nowhere"))}, "nowhere is not a pool directory"),
        ({"engine": EngineSettings("m", engine_args={"max_num_seqs": 1})}, "may not contain 'max_num_seqs'"),
    ],
)
def test_what_cannot_work_is_found_first(bench: Bench, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DareError, match=sentence):
        check(replace(bench, **changes))


def test_ids_must_be_unique(bench: Bench) -> None:
    bench.prompts.write_text('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n')
    with pytest.raises(DareError, match="repeats the id 1"):
        check(bench)


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = []

    def start(folder: Path, log: Any) -> "subprocess.Popen[bytes]":
        code = _CHILD if not processes else "import time; time.sleep(600)"
        command = [sys.executable, "-c", code, str(folder / "task.json"), str(folder / "events.jsonl")]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        if len(processes) == 2:
            Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return processes[-1]

    monkeypatch.setattr(module, "_start", start)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    results, console = Results(bench), Console(file=io.StringIO())
    try:
        number = run_command(bench, results, tmp_path / "out.json", console)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert number == signal.SIGINT
    assert processes[1].wait(10) == -signal.SIGKILL
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["status"] == "interrupted"
    assert {found["arm"] for found in content["measurements"]} == {"none"}


def test_events_are_read_to_the_last_one(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfile = open(sys.argv[1], 'a')\n"
        "for part in ('{\"event\": ', '1}\\n', '{\"event\": 2}\\n'):\n"
        "    file.write(part); file.flush(); time.sleep(0.15)"
    )
    path = tmp_path / "events"
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
        found: Sequence[Any] = list(module._events(process, path))
    assert found == [{"event": 1}, {"event": 2}]
