"""Batches and pools on a Ray cluster of two nodes: nothing is lost, doubled or changed, whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import DEMO, read_rows
from vllm_dare.engine.orphans import descendants
from vllm_dare.pool.pool import RetrievalPool

pytest.importorskip("ray.data", reason="needs the extra ray")

NUM_ROWS = 48
PARTITION_ROWS = 6
PATIENCE_SECONDS = 400  # for one command, on a busy machine

# In a process of its own: Ray's processes go with it, and its warnings are not ours.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**{name: node[name] for name in ("num_cpus", "object_store_memory")})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class RayCluster:
    """Two nodes of one processor on this machine.

    Attributes:
        address: of its head.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER],
            env=os.environ | {"RAY_worker_niceness": "0"},  # or all else on this machine goes first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        lines = iter(self._process.stdout.readline, "")
        self.address = next(line for line in lines if line[0].isdigit()).strip()

    def workers(self) -> list[int]:
        """The processes that hold an engine."""
        return [pid for pid in descendants(self._process.pid) if b"EngineWorker" in _command(pid)]

    def stop(self) -> None:
        started = descendants(self._process.pid)
        self._process.communicate(timeout=120)
        deadline = time.monotonic() + 60
        while any(b"ray" in _command(pid) for pid in started):
            assert time.monotonic() < deadline, "Ray has left processes behind"
            time.sleep(0.2)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, demo_pool: Path) -> Path:
    """A folder with prompts in two partitions, and a pool."""
    folder = tmp_path_factory.mktemp("ray")
    rows = read_rows(DEMO / "prompts.jsonl", NUM_ROWS)
    rows[5]["prompt"] = "word " * 5000  # too long
    for name, part in (("a=1", rows[::2]), ("a=2", rows[1::2])):
        (folder / "prompts" / name).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / "prompts" / name / "rows.jsonl").write_text(lines)
    (folder / "pool").symlink_to(demo_pool)
    return folder


@pytest.fixture(scope="module")
def local(work: Path, demo_model: str) -> dict[str, dict[str, Any]]:
    """The rows of a run on one machine, by id."""
    assert _start(work, demo_model, "local.jsonl").wait(PATIENCE_SECONDS) == 3
    return {row["id"]: row for row in read_rows(work / "local.jsonl")}


def test_a_killed_worker_costs_no_row(
    cluster: RayCluster, work: Path, demo_model: str, local: dict[str, dict[str, Any]]
) -> None:
    output = work / "worker"
    process = _start(work, demo_model, "worker", "--json", str(work / "worker.json"), cluster=cluster)
    _wait_for_parts(process, output, 1)
    os.kill(cluster.workers()[0], signal.SIGKILL)
    assert process.wait(PATIENCE_SECONDS) == 3, "the row that is too long is meant to fail"
    assert _rows(output) == local
    assert (output / "_SUCCESS").exists()
    summary = json.loads((work / "worker.json").read_text())
    assert (summary["status"], summary["total"], summary["failed"]) == ("complete", NUM_ROWS, 1)
    assert summary["figures"]["tokens_per_step"] > 1.5
    assert not list(output.glob(".*"))


def test_groups_are_whole(work: Path) -> None:
    """Each has six rows, as many as a partition."""
    for part in (work / "worker").glob("part-*.jsonl"):
        rows = [row for row in read_rows(part) if row["finish_reason"] != "error"]
        assert len({row["group"] for row in rows}) == 1


def test_after_a_killed_driver_the_same_command_goes_on(
    cluster: RayCluster, work: Path, demo_model: str, local: dict[str, dict[str, Any]]
) -> None:
    output, options = work / "driver", ("--workers", "1")
    process = _start(work, demo_model, "driver", *options, cluster=cluster)
    _wait_for_parts(process, output, 2)
    process.kill()
    process.wait()
    before = {part.name: part.read_bytes() for part in output.glob("part-*.jsonl")}
    assert 2 <= len(before) < NUM_ROWS / PARTITION_ROWS
    assert _start(work, demo_model, "driver", *options, cluster=cluster).wait(PATIENCE_SECONDS) == 3
    assert _rows(output) == local
    assert {name: (output / name).read_bytes() for name in before} == before


def test_other_settings_and_bad_prompts_are_refused(cluster: RayCluster, work: Path, demo_model: str) -> None:
    said = _refusal(work, demo_model, cluster, "--temperature", "0.5")
    assert "driver was begun with something else: temperature (0.0 then, 0.5 now)" in said
    (work / "bad.jsonl").write_text('{"id": 1, "prompt": "a"}\n{"id": 2}\n')
    said = _refusal(work, demo_model, cluster, "--prompts", str(work / "bad.jsonl"))
    assert f"Error: {work}/bad.jsonl, row 2 needs either a `prompt` or `messages`." in said


def test_a_run_learns_into_a_pool_that_it_makes(
    cluster: RayCluster, work: Path, demo_model: str, local: dict[str, dict[str, Any]]
) -> None:
    options = ("--workers", "1", "--limit", "12", "--learn", "--pool", str(work / "learned"))
    summary = work / "learn.json"
    process = _start(work, demo_model, "learn", *options, "--json", str(summary), cluster=cluster)
    status = process.wait(PATIENCE_SECONDS)
    rows = {row["id"]: row for part in (work / "learn").glob("part-*.jsonl") for row in read_rows(part)}
    assert len(rows) == 12
    texts = {key: row["text"] for key, row in rows.items()}
    assert texts == {key: local[key]["text"] for key in rows}
    failed = sum(row["finish_reason"] == "error" for row in rows.values())
    assert status == (3 if failed else 0)
    learned = json.loads(summary.read_text())["learned"]
    with RetrievalPool.open(work / "learned" / "live") as live:
        live.verify()
        kept = sum(len(segment.document_keys) for segment in live.global_segments())
        assert set(live.groups) == {row["group"] for row in rows.values()}
    assert learned["documents"] == kept > 0
    assert learned["tokens"] > 0


def test_a_pool_built_on_ray_is_the_same(cluster: RayCluster, work: Path, demo_model: str) -> None:
    documents = read_rows(DEMO / "documents.jsonl")
    for document in documents[::3]:
        del document["group"]
    lines = [json.dumps(document) for document in documents]
    (work / "one.jsonl").write_text("\n".join([*lines[:300], "not json", lines[7], '{"id": "x"}']) + "\n")
    (work / "two.jsonl").write_text("\n".join([*lines[290:], json.dumps({"id": "ids", "token_ids": [1, 2]})]))
    (work / "groups.csv").write_text(f"user,group\n{documents[0]['id']},users/late\n")
    said = [
        _build(work, demo_model, "local-pool"),
        _build(work, demo_model, "ray-pool", "--engine", "ray", "--ray-address", cluster.address),
    ]
    assert said[0].replace("local-pool", "ray-pool") == said[1]
    assert "2 rows were skipped; the first: one.jsonl:301 is not valid JSON" in said[1]
    files = [
        sorted(path.name for path in (work / name).rglob("*.safetensors"))
        for name in ("local-pool", "ray-pool")
    ]
    assert files[0] == files[1]
    manifests = [
        json.loads((work / name / "manifest.json").read_text()) for name in ("local-pool", "ray-pool")
    ]
    for manifest in manifests:
        del manifest["created_at"]
    assert manifests[0] == manifests[1]


def _start(
    work: Path, model: str, output: str, *options: str, cluster: RayCluster | None = None, stderr: Any = None
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vllm_dare", "generate", "--model", model, "--pool", str(work / "pool")]
    command += ["--prompts", str(work / "prompts"), "--output", str(work / output), "--max-tokens", "150"]
    command += ["--max-num-seqs", "2", "--dtype", "float32", "--max-model-len", "1024"]
    command += ["--engine-args", '{"enforce_eager": true, "kv_cache_memory_bytes": 200000000}']
    if cluster is not None:
        command += ["--engine", "ray", "--ray-address", cluster.address]
        command += ["--partition-rows", str(PARTITION_ROWS)]
    return subprocess.Popen([*command, *options], stderr=stderr, text=True)


def _refusal(work: Path, model: str, cluster: RayCluster, *options: str) -> str:
    process = _start(work, model, "driver", *options, cluster=cluster, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1, said
    return said


def _build(work: Path, model: str, output: str, *options: str) -> str:
    command = [sys.executable, "-m", "vllm_dare", "pool", "build", "one.jsonl", "two.jsonl", "--skip-bad"]
    command += ["--tokenizer", model, "--output", output, "--assignments", "groups.csv", *options]
    done = subprocess.run(
        command, cwd=work, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _wait_for_parts(process: "subprocess.Popen[str]", output: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(list(output.glob("part-*.jsonl"))) < count:
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _rows(output: Path) -> dict[str, dict[str, Any]]:
    rows = [row for part in output.glob("part-*.jsonl") for row in read_rows(part)]
    assert len(rows) == NUM_ROWS
    return {row["id"]: row for row in rows}
