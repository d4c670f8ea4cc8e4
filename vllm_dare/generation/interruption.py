"""Ctrl-C and SIGTERM: while the engine starts, end at once; once it generates, finish the step and stop."""

import os
import signal
import time
from contextlib import suppress
from threading import Timer
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console

from vllm_dare.engine.orphans import kill_descendants

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_SECONDS = 10.0

WHILE_STARTING = "Interrupted while starting; run the same command again to go on."


class StartInterruptedError(BaseException):
    """A signal came before the first row; vLLM swallows a KeyboardInterrupt while it starts, and waits on.

    Attributes:
        exit_status: what a shell expects of a command that the signal ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__(WHILE_STARTING)
        self.exit_status = 128 + number


class Interruption:
    """A context that decides what a signal does to the run inside it.

    Before `generating`, a signal kills the engine's processes and raises `StartInterruptedError`; after it,
    the first signal is noted and the next ones change nothing, so that the run can end in good order.

    Attributes:
        signal: the signal that came, or None.
    """

    def __init__(self, console: Console) -> None:
        self.signal: int | None = None
        self._console = console
        self._generating = False
        self._came_at = 0.0
        self._last_resort: Timer | None = None

    def requested(self) -> bool:
        """Whether the run should stop."""
        return self.signal is not None

    def generating(self) -> None:
        """The engine is up: from now on a signal lets the step finish."""
        self.check_start()
        self._generating = True

    def check_start(self) -> None:
        """End a start during which a signal came, whatever has become of the exception that it raised.

        Raises:
            StartInterruptedError: a signal came.
        """
        if self.signal is not None and not self._generating:
            raise StartInterruptedError(self.signal)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A run that was told to stop is about to end: one more Ctrl-C would only break into vLLM's exit.
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.requested() else handler)
        if self._last_resort is not None:
            self._last_resort.cancel()
        if kind is not StartInterruptedError:
            self.check_start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        if first:
            self.signal, self._came_at = number, time.monotonic()
        if not self._generating:
            self._end_start(number)
        if first:
            with suppress(RuntimeError):  # the signal broke into another write to the same stream
                self._console.print("Stopping after this step...", highlight=False)
        elif time.monotonic() - self._came_at > _PATIENCE_SECONDS:
            self._give_up(number)

    def _end_start(self, number: int) -> None:
        """Kill first: when the exception below is lost in vLLM, its start fails for want of an engine."""
        kill_descendants()
        if self._last_resort is None:
            self._last_resort = Timer(_PATIENCE_SECONDS, self._give_up, (number,))
            self._last_resort.daemon = True
            self._last_resort.start()
        raise StartInterruptedError(number)

    def _give_up(self, number: int) -> None:
        """The run has not stopped in time, so nothing in it can be relied on; its rows are in the file."""
        kill_descendants()
        os.write(2, b"\nInterrupted; run the same command again to go on.\n")
        os._exit(128 + number)
