"""An engine process ends with the run that started it, however the run ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")

ENGINE = """
import time
from vllm_dare.engine.orphans import end_with_run
end_with_run()
print("up", flush=True)
time.sleep(60)
"""
RUN = f"""
import subprocess, sys, time
from vllm_dare.engine.orphans import tie_engine_to_this_process
tie_engine_to_this_process()
engine = subprocess.Popen([sys.executable, "-c", {ENGINE!r}], stdout=subprocess.PIPE, text=True)
engine.stdout.readline()
print(engine.pid, flush=True)
time.sleep(60)
"""


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_run_takes_its_engine_along() -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        engine = int(run.stdout.readline())
        assert _is_running(engine)
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _is_running(engine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(engine)


def test_an_engine_whose_run_is_gone_does_not_start() -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    environment = os.environ | {"DARE_RUN_PID": gone.stdout.decode().strip()}
    assert subprocess.run([sys.executable, "-c", ENGINE], env=environment, check=False).returncode == 1


def test_without_a_run_nothing_happens() -> None:
    code = "from vllm_dare.engine.orphans import end_with_run; end_with_run()"
    environment = {name: value for name, value in os.environ.items() if name != "DARE_RUN_PID"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
