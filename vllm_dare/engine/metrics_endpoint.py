"""What `/metrics` shows of DARE: every engine's numbers, read from its file when somebody asks."""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_dare.engine.metrics_file import METRICS, SUFFIX, Metric, MetricsFile

# The processes of a server inherit it from the first one.
DIRECTORY_VARIABLE = "DARE_METRICS_DIRECTORY"
_PREFIX = "vllm_dare_"


def prepare_directory() -> None:
    """Make the directory of this server's engines, in the process that is the first to be configured.

    Without one (a full disk) engines run without metrics.
    """
    if DIRECTORY_VARIABLE in os.environ:
        return
    try:
        directory = tempfile.mkdtemp(prefix="vllm-dare-metrics-")
    except OSError:
        return
    os.environ[DIRECTORY_VARIABLE] = directory
    atexit.register(_remove, directory, os.getpid())


def directory() -> Path | None:
    """Where the engines' files are; None if this process belongs to no server with DARE."""
    found = os.environ.get(DIRECTORY_VARIABLE)
    return None if found is None else Path(found)


def register(registry: Any) -> None:
    """Have a `CollectorRegistry` show the engines' numbers, once."""
    if not any(isinstance(collector, DareCollector) for collector in registry._collector_to_names):
        registry.register(DareCollector())


class DareCollector:
    """A collector of `prometheus_client`."""

    def describe(self) -> list[Any]:
        """Nothing: the names are known when they are collected."""
        return []

    def collect(self) -> Iterator[Any]:
        """Every metric with a sample for every engine and label value."""
        folder = directory()
        engines = sorted(_newest_files(folder).items()) if folder is not None else []
        for metric in METRICS if engines else ():
            yield _family(metric, engines)


def numbers_of_engines() -> dict[str, dict[str, Any]]:
    """Of each engine number its numbers by name, those with a label by label value; without histograms."""
    folder = directory()
    if folder is None:
        return {}
    return {engine: _numbers(file) for engine, file in sorted(_newest_files(folder).items())}


def _numbers(file: MetricsFile) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metric in METRICS:
        numbers = file.numbers(metric.name).tolist()
        if metric.label is None and metric.kind != "histogram":
            found[metric.name] = numbers[0]
        elif metric.label is not None:
            pairs = zip(_label_values(metric, file), numbers, strict=True)
            found[metric.name] = {value: number for value, number in pairs if value and number}
    return found


def _label_values(metric: Metric, file: MetricsFile) -> Sequence[str]:
    return file.group_names() if metric.label == "group" else metric.values


def _newest_files(folder: Path) -> dict[str, MetricsFile]:
    """Of each engine number the newest file whose process lives: one that was killed could not remove its."""
    found: dict[str, MetricsFile] = {}
    for path in folder.glob(f"*{SUFFIX}"):
        name = re.fullmatch(r"(\d+)-(\d+)", path.stem, re.ASCII)
        file = MetricsFile.read(path) if name is not None and _lives(int(name[2])) else None
        if name is None or file is None:
            continue
        other = found.get(name[1])
        if other is None or file.created > other.created:
            found[name[1]] = file
    return found


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _family(metric: Metric, engines: list[tuple[str, MetricsFile]]) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    labels = ["engine", metric.label] if metric.label is not None else ["engine"]
    families = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    family: Any = families[metric.kind](f"{_PREFIX}{metric.name}", metric.help, labels=labels)
    for engine, file in engines:
        numbers = file.numbers(metric.name)
        if metric.kind == "histogram":
            bounds = [*map(str, metric.bounds), "+Inf"]
            family.add_metric(
                [engine], list(zip(bounds, numbers[:-1].cumsum().tolist(), strict=True)), float(numbers[-1])
            )
        elif metric.label is None:
            family.add_metric([engine], float(numbers[0]))
        else:
            for value, number in zip(_label_values(metric, file), numbers.tolist(), strict=True):
                if value and (number or metric.label not in ("group", "position")):
                    family.add_metric([engine, value], number)
    return family


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork
        shutil.rmtree(path, ignore_errors=True)
