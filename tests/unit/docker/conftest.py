"""What the tests of alerts and dashboard share: names that `/metrics` shows, and Prometheus' own checker."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.engine.metrics_file import METRICS

_NAME = re.compile(r"\b(?:vllm_dare_|vllm:)[a-zA-Z0-9_:]+")
_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")


@pytest.fixture(scope="session")
def shown_names() -> set[str]:
    """The names of all series that `/metrics` may show, ours and those that vLLM's source has."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": _OF_HISTOGRAMS}
    ours = {f"vllm_dare_{metric.name}{suffix}" for metric in METRICS for suffix in suffixes[metric.kind]}
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.submodule_search_locations is None:
        pytest.skip("vLLM is not installed: its metrics' names are not known")
    source = (Path(vllm.submodule_search_locations[0]) / "v1" / "metrics" / "loggers.py").read_text()
    names = set(re.findall(r'"(vllm:[a-z_]+)"', source))
    return ours | {f"{name}{suffix}" for name in names for suffix in ("", "_total", *_OF_HISTOGRAMS)}


@pytest.fixture(scope="session")
def promtool() -> Callable[..., str]:
    """Runs `promtool` with arguments; fails with what it says unless it is content."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")

    def run(*arguments: object) -> str:
        done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def metric_names() -> Callable[[str], set[str]]:
    """Gives the series that a PromQL expression names."""
    return lambda expression: set(_NAME.findall(expression))
