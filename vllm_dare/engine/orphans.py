"""Tie the engine's processes to the batch run that started them, and to nothing else.

vLLM's engine core outlives a front end that is killed (``kill -9``, out of memory): it waits for requests
for ever and keeps the model's memory, so the run that should go on could not start its own engine. And a
Ctrl-C on the terminal reaches the engine as well as the run, which could then not finish its step in peace.
"""

import ctypes
import multiprocessing.util
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_RUN_PID = "DARE_RUN_PID"  # vLLM warns of unknown variables that begin with VLLM_
_PR_SET_PDEATHSIG = 1
_QUIET_LOOKS, _LOOK_SECONDS = 3, 0.02  # a process in the middle of a fork finishes it before it stops


def tie_engine_to_this_process() -> None:
    """Ask the engine processes that this process will start to end when it does, and not before."""
    os.environ[_RUN_PID] = str(os.getpid())
    _spare_children_ctrl_c()


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


def kill_descendants() -> None:
    """Kill every process below this one but multiprocessing's resource tracker, which ends by itself.

    All are stopped first: one that is stopped cannot start another that would be missed.
    """
    found: set[int] = set()
    quiet_looks = 0
    while quiet_looks < _QUIET_LOOKS:
        new = descendants(os.getpid()) - found
        quiet_looks = 0 if new else quiet_looks + 1
        found |= new
        _send(new, signal.SIGSTOP)
        time.sleep(_LOOK_SECONDS)
    _send(found, signal.SIGKILL)


def _spare_children_ctrl_c() -> None:
    """Have multiprocessing start children with SIGINT blocked.

    `end_with_run` takes them out of the terminal's reach, but only after seconds of imports, in which a
    Ctrl-C would make each of them print a traceback.
    """
    start: Any = multiprocessing.util.spawnv_passfds
    if getattr(start, "spares_ctrl_c", False):
        return

    def start_without_ctrl_c(*arguments: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return start(*arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    start_without_ctrl_c.spares_ctrl_c = True  # type: ignore[attr-defined]
    multiprocessing.util.spawnv_passfds = start_without_ctrl_c  # type: ignore[assignment]


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def descendants(root: int) -> set[int]:
    """The ids of all processes below ``root``, without multiprocessing's resource tracker."""
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").glob("[0-9]*")}
    found, added = {root}, {root}
    while added:
        added = {pid for pid, parent in parents.items() if parent in added} - found
        found |= added
    return {pid for pid in found - {root} if not _is_resource_tracker(pid)}


def _parent(entry: Path) -> int | None:
    try:
        state, parent = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[:2]
    except OSError:  # it has just ended
        return None
    return None if state == "Z" else int(parent)


def _is_resource_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
