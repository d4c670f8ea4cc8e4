"""One engine of a bench, in a process of its own: ``python -m vllm_dare.evaluation.bench_child TASK EVENTS``.

What it measures, it appends to EVENTS, one JSON object a line, which the bench reads while it grows.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from vllm_dare.engine.orphans import descendants, end_with_run
from vllm_dare.errors import DareError
from vllm_dare.evaluation.bench_statistics import Cell, measurement
from vllm_dare.evaluation.even_start import empty_prefix_cache, warm_up_rows
from vllm_dare.generation.engine import start_llm, stop_engine
from vllm_dare.generation.meter import Meter
from vllm_dare.generation.prompts import PromptRow, read_prompts
from vllm_dare.generation.settings import SamplingSettings
from vllm_dare.generation.watch import EngineStoppedError

_PROGRESS_SECONDS = 0.5
_ENGINE_STOPPED = "The engine stopped while it was measured; its last words are in the JSON file."


@dataclass(frozen=True)
class Task:
    """What one engine is to do; travels as JSON.

    Attributes:
        llm_args: the arguments of ``vllm.LLM``.
        arms: name and request keys of each arm, in the order in which they run.
        cells: temperature and concurrency of each cell.
        prompts: the prompt file.
        limit: so many of its rows.
        sampling: `SamplingSettings` without the temperature.
        pool: the pool directory, for the peers that can be given its texts.
        repeat: counted from 1.
    """

    llm_args: dict[str, Any]
    arms: Sequence[tuple[str, dict[str, str]]]
    cells: Sequence[tuple[float, int]]
    prompts: str
    limit: int
    sampling: dict[str, Any]
    pool: str | None
    repeat: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """The task that `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


class Engine:
    """A started engine that measures cells.

    Args:
        task: what to do.
        emit: takes each event.
    """

    def __init__(self, task: Task, emit: Any) -> None:
        self._task, self._emit = task, emit
        self._rows = list(read_prompts(Path(task.prompts), task.limit))
        start = time.monotonic()
        self._llm = start_llm(task.llm_args)
        prepared = self._llm.collective_rpc("bench_prepare", args=(task.pool,))[0]
        emit("started", start_seconds=time.monotonic() - start, **prepared)

    def measure_all(self) -> None:
        """Every arm, every cell."""
        for name, keys in self._task.arms:
            rows = [replace(row, metadata={**row.metadata, **keys}) for row in self._rows]
            for temperature, concurrency in self._task.cells:
                cell = Cell(name, temperature, concurrency, self._task.repeat)
                self._emit("cell", **asdict(cell))
                self._measure(cell, rows)

    def finish(self) -> None:
        """Tell what memory the engine took, and stop it."""
        self._emit("memory", peak_bytes=peak_memory())
        stop_engine(self._llm)

    def _measure(self, cell: Cell, rows: Sequence[PromptRow]) -> None:
        self._warm_up(cell, rows)
        self._reset()
        meter = Meter(self._llm)
        finished, seconds = [], []
        told_at = time.monotonic()
        for row, row_seconds in self._run(cell, rows):
            meter.count(row)
            finished.append(row)
            seconds.append(row_seconds)
            if (now := time.monotonic()) - told_at > _PROGRESS_SECONDS:
                told_at = now
                self._emit("progress", rows=len(finished))
        figures = meter.figures()
        times = self._llm.collective_rpc("bench_times")[0]
        found = measurement(cell, figures, finished, seconds, times)
        texts = [{name: row[name] for name in ("id", "token_ids", "finish_reason")} for row in finished]
        self._emit("measured", measurement=asdict(found), texts=texts)
        if found.failed == found.rows:
            raise DareError(f"All rows failed, the last with: {finished[-1]['error']}")

    def _warm_up(self, cell: Cell, rows: Sequence[PromptRow]) -> None:
        for _ in self._run(cell, warm_up_rows(rows, cell.concurrency, self._task.sampling["max_tokens"])):
            pass

    def _run(self, cell: Cell, rows: Sequence[PromptRow]) -> Iterator[tuple[dict[str, Any], float]]:
        """Each output row with the seconds from its being sent to its being whole."""
        from vllm_dare.generation.runner import Runner

        sent: dict[Any, float] = {}

        def sending() -> Iterator[PromptRow]:
            for row in rows:
                sent[row.id] = time.perf_counter()
                yield row

        sampling = SamplingSettings(temperature=cell.temperature, **self._task.sampling)
        runner = Runner(self._llm, sampling, lambda: False, window=cell.concurrency)
        for row in runner.run(sending()):
            yield row, time.perf_counter() - sent[row["id"]]

    def _reset(self) -> None:
        """Nothing of an earlier cell, which had the same prompts, may help this one."""
        empty_prefix_cache(self._llm)
        self._llm.collective_rpc("bench_reset")


def peak_memory() -> int:
    """Bytes: the peak resident memory of every process below this one, added up."""
    return sum(map(_peak_resident, descendants(os.getpid())))


def _peak_resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it has just ended
        return 0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(sizes[0]) * 1024 if sizes else 0


def _reason(error: Exception) -> str:
    if isinstance(error, EngineStoppedError):  # its own sentence is about a batch that can be gone on with
        return _ENGINE_STOPPED
    lines = str(error).splitlines() or [""]
    return lines[0] if isinstance(error, DareError) else f"{type(error).__name__}: {lines[0]}"


def main() -> None:
    """Do the task; exit status 1, with a last event that says why, if it cannot be done."""
    end_with_run()
    task, events = Path(sys.argv[1]), Path(sys.argv[2])
    with events.open("a", encoding="utf-8") as file:

        def emit(kind: str, **values: Any) -> None:
            file.write(json.dumps({"event": kind, **values}) + "\n")
            file.flush()

        try:
            engine = Engine(Task.read(task), emit)
            engine.measure_all()
            engine.finish()
        except Exception as error:
            emit("failed", reason=_reason(error))
            raise  # the log gets the traceback


if __name__ == "__main__":
    main()
