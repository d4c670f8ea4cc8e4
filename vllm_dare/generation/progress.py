"""How a run tells its user where it stands: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from vllm_dare.generation.meter import Figures

_FIGURES_SECONDS = 0.5
_LINE_SECONDS = 10.0


class HasFigures(Protocol):
    """Knows what has been done until now, such as a `vllm_dare.generation.meter.Meter`."""

    def figures(self) -> Figures: ...


class RunProgress(Protocol):
    """What the batch loop tells its progress display."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def advance(self, meter: HasFigures) -> None:
        """One more row is done."""


def run_progress(console: Console, total: int, done: int) -> RunProgress:
    """The display that fits ``console``, for ``total`` rows of which ``done`` were there before."""
    return _Bar(console, total, done) if console.is_terminal else _Lines(console, total, done)


class _Bar:
    def __init__(self, console: Console, total: int, done: int) -> None:
        self._progress = Progress(
            TextColumn("Generating"),
            BarColumn(bar_width=None),
            # on a narrow terminal the figures give way, not the count
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=len(f"{total}/{total}"))),
            TextColumn("{task.fields[figures]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total, completed=done, figures="")
        self._updated_at = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.refresh()  # the last rows may have come since the display last drew itself
        self._progress.stop()

    def advance(self, meter: HasFigures) -> None:
        self._progress.advance(self._task)
        if (now := time.monotonic()) - self._updated_at >= _FIGURES_SECONDS:
            self._updated_at = now
            self._progress.update(self._task, figures=_brief(meter.figures()))


class _Lines:
    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console, self._total, self._done = console, total, done
        self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self, meter: HasFigures) -> None:
        self._done += 1
        if (now := time.monotonic()) - self._told_at >= _LINE_SECONDS:
            self._told_at = now
            figures = meter.figures()
            line = f"{self._done}/{self._total} documents, {_brief(figures)}, {self._remaining(figures)} left"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _remaining(self, figures: Figures) -> str:
        seconds = (self._total - self._done) * figures.seconds / max(figures.rows, 1)
        return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _brief(figures: Figures) -> str:
    parts = [
        f"{figures.documents_per_second or 0:.1f} documents/s",
        f"{figures.tokens_per_second or 0:.0f} tokens/s",
    ]
    if figures.tokens_per_step is not None:
        parts.append(f"{figures.tokens_per_step:.2f} tokens/step")
    return ", ".join(parts)
