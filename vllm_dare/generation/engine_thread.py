"""An engine in a thread of its own, which several callers feed, so that it never runs empty."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from vllm_dare.generation.engine import open_router, start_engine, stop_engine
from vllm_dare.generation.learned import end_learning
from vllm_dare.generation.meter import Figures, Meter
from vllm_dare.generation.prompts import PromptRow, id_key
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.generation.watch import EngineStoppedError

if TYPE_CHECKING:
    from vllm_dare.generation.runner import Runner

OutputRows = list[dict[str, Any]]


class _Partition:
    """Rows that somebody waits for."""

    def __init__(self, rows: Sequence[PromptRow]) -> None:
        self.size = len(rows)
        self.finished: OutputRows = []
        self.outcome: Future[OutputRows] = Future()


class EngineThread:
    """Starts an engine and feeds it.

    Args:
        engine, sampling: what to generate with.
        on_engine_stopped: called in the thread when the engine's process died.
    """

    def __init__(
        self, engine: EngineSettings, sampling: SamplingSettings, on_engine_stopped: Callable[[], None]
    ) -> None:
        self._engine, self._sampling = engine, sampling
        self._on_engine_stopped = on_engine_stopped
        self._asked: SimpleQueue[tuple[_Partition, Sequence[PromptRow]] | None] = SimpleQueue()
        self._waiting: deque[PromptRow] = deque()
        self._partition_of: dict[str, _Partition] = {}
        self._meter: Meter | None = None
        # vLLM's engine ends with the thread that started it, see `vllm_dare.engine.orphans`
        self._thread = threading.Thread(target=self._run, name="vllm-dare-engine", daemon=True)
        self._thread.start()

    def generate(self, rows: Sequence[PromptRow]) -> OutputRows:
        """An output row for each row, in the order in which they finish; several threads may call this.

        Raises:
            DareError: the engine did not start, or all rows fail.
        """
        partition = _Partition(rows)
        self._asked.put((partition, rows))
        return partition.outcome.result()

    def figures(self) -> Figures:
        """What the engine has done since it started."""
        return Figures() if self._meter is None else self._meter.figures()

    def close(self) -> None:
        """Finish what was asked for, write down what was learned and stop the engine."""
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._start_and_generate()
        except EngineStoppedError:
            self._on_engine_stopped()
        except Exception as error:  # whoever waits must hear of it
            self._refuse_all(error)

    def _start_and_generate(self) -> None:
        llm = start_engine(self._engine)
        try:
            from vllm_dare.generation.runner import Runner  # needs vLLM, which start-up has made ready

            runner = Runner(llm, self._sampling, lambda: False, router=open_router(self._engine))
            self._meter = Meter(llm)
            while self._take(runner):
                for _ in range(min(runner.room, len(self._waiting))):
                    self._hand_out(runner.enqueue(self._waiting.popleft()))
                if runner.is_busy:
                    self._hand_out(runner.step())
            end_learning(llm, self._engine)
        finally:
            stop_engine(llm)

    def _take(self, runner: "Runner") -> bool:
        """Take what is asked for, and wait for it if there is nothing to do; False if no more will come."""
        while (is_idle := not self._waiting and not runner.is_busy) or not self._asked.empty():
            asked = self._asked.get()
            if asked is None:
                if is_idle:
                    return False
                self._asked.put(None)  # when all is done
                return True
            partition, rows = asked
            self._waiting.extend(rows)
            self._partition_of.update((id_key(row.id), partition) for row in rows)
        return True

    def _hand_out(self, rows: Iterator[dict[str, Any]]) -> None:
        for row in rows:
            partition = self._partition_of.pop(id_key(row["id"]))
            partition.finished.append(row)
            if self._meter is not None:
                self._meter.count(row)
            if len(partition.finished) == partition.size:
                partition.outcome.set_result(partition.finished)

    def _refuse_all(self, error: Exception) -> None:
        for partition in set(self._partition_of.values()):
            partition.outcome.set_exception(error)
        while (asked := self._asked.get()) is not None:
            asked[0].outcome.set_exception(error)
