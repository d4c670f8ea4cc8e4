"""`vllm-dare bench`: every arm on the same prompts, one engine at a time, repeats in turns."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vllm_dare.errors import DareError
from vllm_dare.evaluation.bench_arms import BASELINE, Arm, engines_of, in_turns
from vllm_dare.evaluation.bench_child import Task
from vllm_dare.evaluation.bench_provenance import provenance
from vllm_dare.evaluation.bench_statistics import Measurement, compared, summarise
from vllm_dare.generation.compare import Rows
from vllm_dare.generation.engine import check_model, check_pool
from vllm_dare.generation.ids import check_unique
from vllm_dare.generation.prompts import read_prompts
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.pool.manifest import read_manifest
from vllm_dare.store.cache import pool_directory

_LOOK_SECONDS = 0.1
_LOG_LINES = 30
_SUFFIX_TEXTS = 10_000  # what vLLM's suffix decoding holds by default

Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Bench:
    """What is compared.

    Attributes:
        prompts: the prompt file; its first ``limit`` rows are generated in every cell.
        engine: what all engines have in common; its draft settings are not used.
        sampling: what all requests have in common; its temperature is not used.
        arms: see `Arm`; speed-ups need the arm ``none``.
        max_draft: the longest draft of arms without a fixed length.
        temperatures, concurrencies: every pair of them is a cell.
        repeats: how many times each engine is started and measured.
    """

    prompts: Path
    limit: int
    engine: EngineSettings
    sampling: SamplingSettings
    arms: Sequence[Arm]
    max_draft: int
    temperatures: Sequence[float]
    concurrencies: Sequence[int]
    repeats: int

    @property
    def cells(self) -> list[tuple[float, int]]:
        """Temperature and concurrency of each cell."""
        return [(temperature, count) for temperature in self.temperatures for count in self.concurrencies]

    def as_dict(self) -> dict[str, Any]:
        """The settings, as JSON values."""
        engine, sampling = self.engine, asdict(self.sampling)
        del sampling["temperature"]
        return {
            "model": engine.model,
            "prompts": str(self.prompts),
            "limit": self.limit,
            "pool": None if engine.pool is None else str(engine.pool),
            "arms": [arm.name for arm in self.arms],
            "draft": self.max_draft,
            "temperatures": list(self.temperatures),
            "concurrencies": list(self.concurrencies),
            "repeats": self.repeats,
            **sampling,
            "max_model_len": engine.max_model_len,
            "dtype": engine.dtype,
            "engine_args": dict(engine.engine_args),
        }


@dataclass
class Results:
    """What has been found so far.

    Attributes:
        status: ``running``, ``complete`` or ``interrupted``.
        engines: one record for each engine that ran: repeat, arms, start_seconds, device, peak_bytes, and
            log, the last lines that a failed one wrote.
        failures: arm name to the reason why it has no (more) figures.
    """

    bench: Bench
    status: Literal["running", "complete", "interrupted"] = "running"
    provenance: dict[str, Any] = field(default_factory=provenance)
    measurements: list[Measurement] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    texts: dict[tuple[str, float, int, int], Rows] = field(default_factory=dict)

    def add(self, found: Measurement, texts: Rows) -> None:
        """Take in one measured cell."""
        self.measurements.append(found)
        self.texts[_key(found)] = texts

    def compare(self) -> None:
        """Compare texts with the baseline's of the same repeat, which may have come later."""
        for i, found in enumerate(self.measurements):
            baseline = self.texts.get((BASELINE, found.temperature, found.concurrency, found.repeat))
            if found.arm != BASELINE and found.same_texts is None and baseline is not None:
                self.measurements[i] = compared(found, self.texts[_key(found)], baseline)

    def as_dict(self) -> dict[str, Any]:
        """The result file's content."""
        order = [arm.name for arm in self.bench.arms]
        summary = summarise(self.measurements)
        peaks = self._peaks()
        return {
            "status": self.status,
            "settings": self.bench.as_dict(),
            "provenance": self.provenance,
            "failures": self.failures,
            "summary": [
                record | {"peak_bytes": peaks.get(record["arm"])}
                for record in sorted(summary, key=lambda record: order.index(record["arm"]))
            ],
            "engines": self.engines,
            "measurements": [asdict(found) for found in self.measurements],
        }

    def _peaks(self) -> dict[str, int]:
        """Bytes: the greatest peak of the engines that each arm ran in."""
        peaks: dict[str, int] = {}
        for engine in self.engines:
            for arm in engine["arms"]:
                peaks[arm] = max(peaks.get(arm, 0), engine.get("peak_bytes", 0))
        return {arm: peak for arm, peak in peaks.items() if peak}


def check(bench: Bench) -> Bench:
    """Find what cannot work before any engine starts.

    Returns:
        the bench, its limit lowered to the rows that there are.

    Raises:
        DareError: see the message.
    """
    for name in ("max_num_seqs", "worker_extension_cls"):
        if name in bench.engine.engine_args:
            raise DareError(f"--engine-args may not contain {name!r}: the bench sets it itself.")
    check_model(bench.engine.model)
    if bench.engine.pool is not None:
        check_pool(bench.engine.pool, bench.engine.model)
    rows, again = (read_prompts(bench.prompts, bench.limit) for _ in range(2))
    count = check_unique(rows, again, str(bench.prompts))
    if not count:
        raise DareError(f"The prompt file {bench.prompts} has no rows.")
    if count < max(bench.concurrencies):
        raise DareError(
            f"--concurrency {max(bench.concurrencies)} needs as many prompts at least, but there are "
            f"{count}: add rows, raise --limit, or lower it."
        )
    return replace(bench, limit=count)


def run(bench: Bench, results: Results, save: Callable[[], None], tell: Tell) -> None:
    """Measure everything, engine after engine; an arm that fails is noted and left out from then on.

    Args:
        bench: see `check`.
        results: filled as figures come.
        save: called whenever an engine is done.
        tell: called with each event of an engine (see `bench_child`), and with ``engine`` and ``over``.
    """
    engines = engines_of(bench.arms)
    for members in engines:
        if (reason := _missing(members[0])) is not None:
            _fail(results, members, reason)
    for repeat, members in in_turns(engines, bench.repeats):
        if members[0].name in results.failures:
            tell("over", {"repeat": repeat, "arms": [arm.name for arm in members], "seconds": None})
            continue
        _run_engine(bench, repeat, members, results, tell)
        results.compare()
        save()
    results.status = "complete"
    save()


def _run_engine(bench: Bench, repeat: int, members: Sequence[Arm], results: Results, tell: Tell) -> None:
    names = [arm.name for arm in members]
    record: dict[str, Any] = {"repeat": repeat, "arms": names}
    results.engines.append(record)
    tell("engine", record)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vllm-dare-bench-") as name:
        folder = Path(name)
        _task(bench, repeat, members).write(folder / "task.json")
        reason = None
        with (folder / "log").open("w", encoding="utf-8") as log:
            process = _start(folder, log)
            for event in _events(process, folder / "events.jsonl"):
                kind = event.pop("event")
                if kind == "failed":
                    reason = event["reason"]
                elif kind == "measured":
                    results.add(Measurement(**event["measurement"]), event["texts"])
                elif kind in ("started", "memory"):
                    record.update(event)
                tell(kind, event)
        if process.returncode:
            record["log"] = _last_lines(folder / "log")
            _fail(results, members, reason or _died(process.returncode, record["log"]))
    tell("over", {**record, "seconds": time.monotonic() - start})


def _task(bench: Bench, repeat: int, members: Sequence[Arm]) -> Task:
    pool = bench.engine.pool
    sampling = asdict(bench.sampling)
    del sampling["temperature"]
    cells = bench.cells
    return Task(
        llm_args=members[0].llm_args(bench.engine, bench.max_draft, _suffix_texts(bench)),
        arms=[(arm.name, arm.request_keys) for arm in members],
        cells=list(reversed(cells)) if repeat % 2 == 0 else cells,
        prompts=str(bench.prompts),
        limit=bench.limit,
        sampling=sampling,
        pool=None if pool is None else str(pool_directory(pool).resolve()),
        repeat=repeat,
    )


def _suffix_texts(bench: Bench) -> int:
    """vLLM's default, or room for every document of the pool and every measured text."""
    if bench.engine.pool is None:
        return _SUFFIX_TEXTS
    manifest = read_manifest(pool_directory(bench.engine.pool))
    return max(_SUFFIX_TEXTS, 2 * bench.limit + sum(s.num_documents for s in manifest.segments.values()))


def _start(folder: Path, log: Any) -> "subprocess.Popen[bytes]":
    """The engine's process: its own session, so that Ctrl-C reaches this one alone, and it ends with this."""
    command = [sys.executable, "-m", "vllm_dare.evaluation.bench_child"]
    return subprocess.Popen(
        [*command, str(folder / "task.json"), str(folder / "events.jsonl")],
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"DARE_RUN_PID": str(os.getpid())},
    )


def _events(process: "subprocess.Popen[bytes]", path: Path) -> Iterator[dict[str, Any]]:
    """What the process appends to its file, until it ends.

    A file and not a pipe, which processes that linger would keep open.
    """
    path.touch()
    with path.open(encoding="utf-8") as file:
        pending = ""
        while True:
            ended = process.poll() is not None
            while line := file.readline():
                pending += line
                if pending.endswith("\n"):
                    yield json.loads(pending)
                    pending = ""
            if ended:
                return
            time.sleep(_LOOK_SECONDS)


def _missing(arm: Arm) -> str | None:
    if arm.method == "suffix" and importlib.util.find_spec("arctic_inference") is None:
        return "arctic-inference is not installed; install it with `pip install 'vllm-dare[peers]'`."
    return None


def _fail(results: Results, members: Sequence[Arm], reason: str) -> None:
    results.failures |= {arm.name: reason for arm in members}


def _died(status: int, log: Sequence[str]) -> str:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    errors = [line for line in log if "Error" in line]
    return f"The engine's process {how}" + (f": {errors[-1].strip()}" if errors else ".")


def _last_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]


def _key(found: Measurement) -> tuple[str, float, int, int]:
    return (found.arm, found.temperature, found.concurrency, found.repeat)
