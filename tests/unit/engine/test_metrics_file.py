import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from vllm_dare.drafting.drafter import Drafts
from vllm_dare.engine import metrics_endpoint, metrics_file, plugin
from vllm_dare.engine.draft_metrics import DraftMetrics
from vllm_dare.engine.metrics_file import MAX_GROUPS, METRICS, MetricsFile


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(metrics_endpoint.DIRECTORY_VARIABLE, str(tmp_path))
    return tmp_path


def shown() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What `/metrics` would answer: (name, labels) to value."""
    registry = CollectorRegistry()
    metrics_endpoint.register(registry)
    metrics_endpoint.register(registry)  # a second time does nothing
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)  # no series twice
    return found


def value(name: str, **labels: str) -> float:
    return shown()[f"vllm_dare_{name}", frozenset({"engine": "0", **labels}.items())]


def test_what_is_written_is_shown(directory: Path) -> None:
    file = MetricsFile.create(directory, 0)
    file.add("drafts", 3)
    file.add("drafts")
    file.add("errors", label="sources")
    file.set("pool_bytes", 12345)
    file.numbers("accepted_tokens")[2] += 7
    assert value("drafts_total") == 4
    assert value("errors_total", kind="sources") == 1
    assert value("errors_total", kind="draft") == 0
    assert value("pool_bytes") == 12345
    assert value("accepted_tokens_total", source="global") == 7


def test_a_histogram_is_that_of_its_values(directory: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.exponential(1e-3, 200), [1e-5, 0.1, 5.0]])  # on bounds, and beyond the last
    file = MetricsFile.create(directory, 0)
    metrics, drafts = DraftMetrics(file), Drafts.empty(1, 1)
    drafts.matches[:] = 3
    for seconds in values:
        metrics.sent([None], [None], drafts, np.zeros(1, np.int64), float(seconds))
    for bound in (1e-05, 0.001, 0.1):
        assert value("look_up_seconds_bucket", le=str(bound)) == (values <= bound).sum()
    assert value("look_up_seconds_bucket", le="+Inf") == value("look_up_seconds_count") == len(values)
    assert value("look_up_seconds_sum") == pytest.approx(values.sum())


def test_groups_have_labels_of_their_own_until_there_are_too_many(directory: Path) -> None:
    file = MetricsFile.create(directory, 0)
    for number in range(MAX_GROUPS + 20):
        file.numbers("group_draft_tokens")[file.group_slot(f"g{number}")] += 1
        assert file.group_slot(f"g{number}") == min(number, MAX_GROUPS)
    file.numbers("group_draft_tokens")[file.group_slot(None)] += 5
    assert value("group_draft_tokens_total", group="g0") == 1
    assert value("group_draft_tokens_total", group=f"g{MAX_GROUPS - 1}") == 1
    assert value("group_draft_tokens_total", group=metrics_file.OTHER_GROUPS) == 20
    assert value("group_draft_tokens_total", group=metrics_file.NO_GROUP) == 5
    assert sum(name == "vllm_dare_group_draft_tokens_total" for name, _ in shown()) == MAX_GROUPS + 2


@pytest.mark.parametrize("name", ['a"b\\c\nd', "ü" * 200, "x" * 127, "\udcff"])
def test_a_group_may_have_any_name(directory: Path, name: str) -> None:
    file = MetricsFile.create(directory, 0)
    file.numbers("group_draft_tokens")[file.group_slot(name)] += 1
    groups = [
        dict(labels)["group"] for metric, labels in shown() if metric == "vllm_dare_group_draft_tokens_total"
    ]
    assert len(groups) == 1
    assert groups[0][:60] == name.encode(errors="replace").decode()[:60]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x" * 128 + "1", "x" * 128 + "2"),
        ("x" * 127 + "\u00e9", "x" * 127 + "\u0100"),  # cut after different bytes, which are no character
        ("a", "a\0"),
        ("?", "\udcff"),
        ("", "\0"),
        (metrics_file.OTHER_GROUPS, metrics_file.NO_GROUP),
    ],
)
def test_no_two_groups_have_the_same_label(directory: Path, first: str, second: str) -> None:
    file = MetricsFile.create(directory, 0)
    for group in (None, first, second, "last", *(f"g{number}" for number in range(MAX_GROUPS))):
        file.numbers("group_draft_tokens")[file.group_slot(group)] += 1
    assert file.group_slot(second) == MAX_GROUPS
    assert value("group_draft_tokens_total", group="last") == 1
    numbers = {
        dict(labels)["group"]: number
        for (name, labels), number in shown().items()  # fails where a series is there twice
        if name == "vllm_dare_group_draft_tokens_total"
    }
    assert sum(numbers.values()) == MAX_GROUPS + 4
    assert numbers[metrics_file.NO_GROUP] == 1


def test_of_several_engines_with_one_number_the_newest_is_shown(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = MetricsFile.create(directory, 0)
    first.add("drafts", 1)
    monkeypatch.setattr(metrics_file.os, "getpid", os.getppid)  # another server of the same parent
    second = MetricsFile.create(directory, 0)
    assert second.path != first.path
    second.add("drafts", 2)
    os.utime(first.path)  # the older one goes on counting
    assert value("drafts_total") == 2
    second.remove()
    assert value("drafts_total") == 1


def test_an_engine_that_was_killed_is_shown_no_more(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MetricsFile.create(directory, 0).add("drafts", 1)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setattr(metrics_file.os, "getpid", lambda: gone.pid)
    MetricsFile.create(directory, 0).add("drafts", 2)
    MetricsFile.create(directory, 1).add("drafts", 3)
    assert value("drafts_total") == 1
    assert not any(dict(labels).get("engine") == "1" for _, labels in shown())


def test_every_engine_is_shown_and_a_new_one_replaces_its_predecessor(directory: Path) -> None:
    for engine, number in ((0, 1.0), (1, 2.0), (0, 5.0)):
        MetricsFile.create(directory, engine).add("drafts", number)
    values = {
        dict(labels)["engine"]: number
        for (name, labels), number in shown().items()
        if name == "vllm_dare_drafts_total"
    }
    assert values == {"0": 5.0, "1": 2.0}


def test_several_api_servers_show_them_whatever_registry_they_make(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM and prometheus-fastapi-instrumentator do, of which the latter answers."""
    monkeypatch.setattr(MultiProcessCollector, "collect", MultiProcessCollector.collect)  # put back after
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path_factory.mktemp("prometheus")))
    MetricsFile.create(directory, 0).add("drafts", 3)
    plugin.METRICS_OF_SEVERAL.apply()
    plugin.METRICS_OF_SEVERAL.apply()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    assert generate_latest(registry).decode().count('vllm_dare_drafts_total{engine="0"} 3.0') == 1


def test_an_engine_that_has_ended_is_shown_no_more(directory: Path) -> None:
    file = MetricsFile.create(directory, 0)
    file.remove()
    file.remove()
    file.add("drafts")  # the last step may still count
    assert shown() == {}
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(1 << 20)])
def test_other_files_are_passed_over(directory: Path, content: bytes) -> None:
    for name in ("7.metrics", f"7-{os.getpid()}.metrics", "x-1.metrics", f"7-{10**30}.metrics"):
        (directory / name).write_bytes(content)
    assert shown() == {}


def test_without_a_directory_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics_endpoint.DIRECTORY_VARIABLE, raising=False)
    assert shown() == {}


def test_the_directory_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics_endpoint.DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    metrics_endpoint.prepare_directory()
    first = metrics_endpoint.directory()
    metrics_endpoint.prepare_directory()
    assert metrics_endpoint.directory() == first
    assert first is not None
    assert first.is_dir()
    metrics_endpoint._remove(str(first), owner=0)  # another process's
    assert first.is_dir()


def test_no_room_for_the_directory_means_no_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics_endpoint.DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    metrics_endpoint.prepare_directory()
    assert metrics_endpoint.directory() is None


def test_a_reader_meets_whole_numbers(directory: Path) -> None:
    file = MetricsFile.create(directory, 0)
    numbers, done = file.numbers("pool_tokens"), threading.Event()

    def write() -> None:
        while not done.is_set():
            numbers[0] = 2.0**53
            numbers[0] = 1.0

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {float(MetricsFile.read(file.path).numbers("pool_tokens")[0]) for _ in range(300)}  # type: ignore[union-attr]
    finally:
        done.set()
        writer.join()
    assert seen <= {0.0, 1.0, 2.0**53}


def test_names_follow_prometheus_conventions() -> None:
    for metric in METRICS:
        assert metric.help.endswith(".")
        assert not metric.name.endswith("_total")  # the client adds it to counters
        if metric.kind == "histogram":
            assert list(metric.bounds) == sorted(set(metric.bounds))
            assert metric.name.endswith(("_seconds", "_tokens"))
