"""Tie the engine's processes to the batch run that started them, and to nothing else.

vLLM's engine core outlives a front end that is killed (``kill -9``, out of memory): it waits for requests
for ever and keeps the model's memory, so the run that should go on could not start its own engine. And a
Ctrl-C on the terminal reaches the engine as well as the run, which could then not finish its step in peace.
"""

import ctypes
import os
import signal
import sys

_RUN_PID = "DARE_RUN_PID"  # vLLM warns of unknown variables that begin with VLLM_
_PR_SET_PDEATHSIG = 1


def tie_engine_to_this_process() -> None:
    """Ask the engine processes that this process will start to end when it does."""
    os.environ[_RUN_PID] = str(os.getpid())


def end_with_run() -> None:
    """Called by vLLM in each of its processes, as a plugin; acts in the engine of a batch run only.

    The engine core ends with the run; vLLM ends the workers with their engine core.
    """
    run_pid = int(os.environ.get(_RUN_PID, "0"))
    if not run_pid or run_pid == os.getpid() or sys.platform != "linux":
        return
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # away from the terminal's Ctrl-C
    if os.getppid() == run_pid:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not _is_alive(run_pid):  # it ended before the request above
        os._exit(1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
