"""vLLM's OpenAI server as a subprocess, started as examples/server.sh starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .conftest import SPECULATION

START_SECONDS = 240


def server_command(model: str, port: int, dare: dict[str, Any], *options: str) -> list[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "16"]
    command += ["--speculative-config", json.dumps(SPECULATION)]
    command += ["--additional-config", json.dumps({"dare": dare}), *options]
    return command


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def running_server(
    model: str, dare: dict[str, Any], log: Path, *options: str, **environment: str
) -> Iterator[str]:
    """Start a server and end it, all its processes included; gives its address."""
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            server_command(model, port, dare, *options),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"} | environment,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(process, address, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def metrics(address: str) -> dict[str, float]:
    """The sum over labels of each of the server's metrics."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.split("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def _wait_until_healthy(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, f"the server ended: {log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"the server does not start: {log.read_text()[-4000:]}"
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        time.sleep(0.2)
