"""What may go wrong around a real server, while clients keep it busy: it costs speed, never a token."""

import glob
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import read_documents
from vllm_dare.pool.pool import RetrievalPool

from .asking import Ask, ask_all, texts_of
from .conftest import DEMO
from .faulty_look_ups import SWITCH
from .one_process import run_engines
from .server import metrics, running_server

pytestmark = pytest.mark.filterwarnings("default")

NUM_PROMPTS = 8
MAX_TOKENS = 100
SMALL_DISK = 3 * 2**20
# Debian's package `faketime`.
FAKETIME = next(iter(sorted(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1"))), None)


@pytest.fixture(scope="module")
def rows(demo_prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return demo_prompts[:NUM_PROMPTS]


@pytest.fixture(scope="module")
def expected(
    demo_model: str, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """What vLLM writes without this plugin."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{demo_model}/tokenizer.json")
    job = {
        "model": demo_model,
        "prompts": [tokenizer.encode(row["prompt"]).ids for row in rows],
        "params": {"temperature": 0.0, "max_tokens": MAX_TOKENS},
    }
    (result,) = run_engines([job], tmp_path_factory.mktemp("plain"), plugins="")
    return [str(tokenizer.decode(ids)) for ids in result["outputs"]]


def build(pool: Path, model: str, first: int = 0) -> None:
    documents = list(read_documents([DEMO / "documents.jsonl"]))[first:]
    build_pool(documents, model, pool, overwrite=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of three megabytes, where one can be mounted; else a directory."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = os.geteuid() == 0 and _mount(folder)
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=False)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def pool(demo_model: str, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool whose learned text is on the small disk."""
    folder = tmp_path_factory.mktemp("pools") / "pool"
    build(folder, demo_model)
    (folder / "live").symlink_to(disk)
    return folder


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a server whose look-ups fail while a file is there, and whose clock can be set."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copy(Path(__file__).with_name("faulty_look_ups.py"), folder / "sitecustomize.py")
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    environment = {SWITCH: str(folder / "on"), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if FAKETIME is None:
        return environment
    (folder / "clock").write_text("+0")
    return environment | {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


class Server:
    """A server, and eight clients."""

    def __init__(self, address: str, log: Path, rows: list[dict[str, Any]]) -> None:
        self.address, self.log, self.rows = address, log, rows

    def texts(self) -> list[str]:
        """What all prompts come to, asked for at once."""
        return texts_of(self.address, self.rows, MAX_TOKENS)

    def metric(self, name: str) -> float:
        return metrics(self.address)[f"vllm_dare_{name}"]

    def engine(self) -> int:
        """The process of the engine."""
        (found,) = re.findall(r"EngineCore pid=(\d+)", self.log.read_text())[:1]
        return int(found)


Start = Callable[[], Any]


@pytest.fixture(scope="module")
def start(
    demo_model: str,
    pool: Path,
    rows: list[dict[str, Any]],
    faults: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Start:
    @contextmanager
    def start() -> Iterator[Server]:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        settings = {"pool": str(pool), "draft_budget": "fixed", "live": {}}
        with running_server(demo_model, settings, log, environment=faults) as address:
            yield Server(address, log, rows)

    return start


@pytest.fixture(scope="module")
def server(start: Start) -> Iterator[Server]:
    with start() as server:
        yield server


def test_look_ups_that_raise_cost_drafts(server: Server, expected: list[str], faults: dict[str, str]) -> None:
    assert server.texts() == expected
    switch = Path(faults[SWITCH])
    switch.touch()
    try:
        assert server.texts() == expected
    finally:
        switch.unlink()
    errors = server.metric("errors_total")
    assert errors >= 2
    accepted = server.metric("accepted_tokens_total")
    assert server.texts() == expected
    assert server.metric("errors_total") == errors
    assert server.metric("accepted_tokens_total") > accepted + 100
    assert server.log.read_text().count("a look-up that raises") == 1  # the others are counted


def test_a_writer_that_is_killed_leaves_a_whole_pool(
    server: Server, expected: list[str], pool: Path, demo_model: str
) -> None:
    command = [sys.executable, "-m", "vllm_dare", "pool", "build", str(DEMO / "documents.jsonl")]
    command += ["--tokenizer", demo_model, "--output", str(pool), "--overwrite"]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(4):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.3, 1.0) * whole)
            process.kill()
        with RetrievalPool.open(pool) as opened:
            opened.verify()
        assert server.texts() == expected
    reloads = server.metric("pool_reloads_total")
    build(pool, demo_model, first=20)
    deadline = time.monotonic() + 60
    while server.metric("pool_reloads_total") <= reloads:
        assert time.monotonic() < deadline
        assert server.texts() == expected
    assert not list(pool.glob(".*.tmp"))  # what the killed ones left has gone


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (Debian's package faketime)")
@pytest.mark.parametrize("step", ["+3d", "-3d"])
def test_a_clock_that_is_set_changes_nothing(
    server: Server, expected: list[str], pool: Path, demo_model: str, faults: dict[str, str], step: str
) -> None:
    clock = Path(faults["FAKETIME_TIMESTAMP_FILE"])
    before = server.metric("pool_reloads_total")
    clock.write_text(step)
    assert server.texts() == expected
    build(pool, demo_model, first=len(step) + (step[0] == "-"))
    deadline = time.monotonic() + 60
    while server.metric("pool_reloads_total") <= before:
        assert time.monotonic() < deadline
        assert server.texts() == expected
    clock.write_text("+0")
    assert server.texts() == expected


def test_bits_that_flip_on_disk_change_no_text(server: Server, expected: list[str], pool: Path) -> None:
    """The segments are mapped: the engine sees what is flipped at once."""
    rng = random.Random(0)
    for _ in range(3):
        for path in (pool / "segments").glob("*.safetensors"):
            with path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                for _ in range(50):
                    place = rng.randrange(size // 4, size)
                    file.seek(place)
                    byte = file.read(1)[0] ^ (1 << rng.randrange(8))
                    file.seek(place)
                    file.write(bytes([byte]))
        assert server.texts() == expected


def test_a_full_disk_ends_writing_and_nothing_else(
    server: Server, expected: list[str], disk: Path, demo_model: str
) -> None:
    if shutil.disk_usage(disk).total > 2 * SMALL_DISK:
        pytest.skip("needs root, to mount a small file system")
    with (disk / "filling").open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(2**16))
            file.flush()
    deadline = time.monotonic() + 60
    while "is neither written to disk nor read from it" not in server.log.read_text():
        assert time.monotonic() < deadline
        assert server.texts() == expected
        _ask_something_new(server)
    (disk / "filling").unlink()
    with RetrievalPool.open(disk) as live:
        live.verify()
    assert server.texts() == expected


def _ask_something_new(server: Server) -> None:
    """Text that is not known yet, so that it is to be written."""
    options = {"max_tokens": MAX_TOKENS, "temperature": 0.9}
    ask_all(server.address, [Ask("completions", f"{time.monotonic_ns()}", options)])


def test_a_pool_that_is_removed_serves_on(server: Server, expected: list[str], pool: Path) -> None:
    for path in (pool / "segments").iterdir():
        path.unlink()
    shutil.rmtree(pool / "segments")
    (pool / "manifest.json").unlink()
    time.sleep(2)
    accepted = server.metric("accepted_tokens_total")
    assert server.texts() == expected
    assert server.metric("accepted_tokens_total") > accepted


def test_an_engine_that_is_killed_starts_again_clean(
    server: Server, start: Start, expected: list[str], pool: Path, demo_model: str
) -> None:
    def ask_on() -> None:
        while True:
            server.texts()

    with ThreadPoolExecutor(1) as clients:
        running = clients.submit(ask_on)
        time.sleep(0.3)
        os.kill(server.engine(), signal.SIGKILL)
        assert isinstance(running.exception(60), openai.APIError)
    shutil.rmtree(pool / "segments", ignore_errors=True)
    build_pool(read_documents([DEMO / "documents.jsonl"]), demo_model, pool.with_name("new"))
    for path in pool.with_name("new").iterdir():
        shutil.move(path, pool / path.name)
    with RetrievalPool.open(pool / "live") as live:
        live.verify()
    with start() as again:
        assert again.texts() == expected
        assert again.metric("errors_total") == 0
