"""Notice that an engine's process was killed (out of memory, say): vLLM waits on for it, for ever."""

import time
from concurrent.futures import Future
from queue import Queue
from threading import Thread
from typing import Any

from vllm_dare.errors import DareError

_LOOK_SECONDS = 1.0


class EngineStoppedError(DareError):
    """The engine died; what was finished before is in the output."""

    def __init__(self) -> None:
        super().__init__(
            "The vLLM engine stopped (what it said is above; if that is nothing, it was killed, as when "
            "memory runs out); finished rows are kept, run the same command again to go on."
        )


def watch_engine(llm: Any) -> None:
    """From now on, whoever waits for the engine of a ``vllm.LLM`` gets an error a second after its end.

    vLLM notices that the process has ended, and refuses new requests, but lets those wait who wait.
    """
    core = llm.llm_engine.engine_core
    if not hasattr(core, "outputs_queue"):  # the engine is in this process
        return
    parts = (core.resources, core.outputs_queue, core.utility_results)  # not the core, which may be collected
    Thread(target=_watch, args=parts, name="vllm-dare-watch", daemon=True).start()


def _watch(resources: Any, outputs: "Queue[Any]", answers: dict[int, "Future[Any]"]) -> None:
    while not resources.engine_dead:  # vLLM sets it at a regular end too, when nobody waits any more
        time.sleep(_LOOK_SECONDS)
    outputs.put(EngineStoppedError())  # which vLLM turns into an EngineDeadError of its own
    for answer in list(answers.values()):
        if not answer.done():
            answer.set_exception(EngineStoppedError())
