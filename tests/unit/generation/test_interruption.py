"""A signal ends a start at once with its children, and lets a run that generates finish its step."""

import io
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from rich.console import Console

from vllm_dare.generation.interruption import Interruption, StartInterruptedError

pytestmark = pytest.mark.usefixtures("signal_handlers")

_CHILD_WITH_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)"
)


def _console() -> Console:
    return Console(file=io.StringIO())


def _is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_start_ends_with_its_children_and_grandchildren(number: int, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD_WITH_CHILD], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        with pytest.raises(StartInterruptedError) as raised, Interruption(_console()):
            os.kill(os.getpid(), number)
        assert raised.value.exit_status == status
        assert child.wait(10) == -signal.SIGKILL
    for _ in range(100):
        if _is_gone(grandchild):
            return
        signal.sigtimedwait([], 0.05)
    pytest.fail("the grandchild is left behind")


def test_an_interrupted_start_ends_whatever_swallows_the_exception() -> None:
    with pytest.raises(StartInterruptedError), Interruption(_console()), suppress(BaseException):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_error_after_the_signal_is_taken_for_the_interruption() -> None:
    with pytest.raises(StartInterruptedError), Interruption(_console()):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            raise RuntimeError("the engine has gone") from None


def test_further_signals_do_not_disturb_the_last_step() -> None:
    console = _console()
    with Interruption(console) as interruption:
        interruption.generating()
        assert not interruption.requested()
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
    os.kill(os.getpid(), signal.SIGINT)  # vLLM's exit is not disturbed either
    assert console.file.getvalue() == "Stopping after this step...\n"  # type: ignore[attr-defined]


def test_handlers_come_back_after_a_run_without_a_signal() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption(_console()):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
