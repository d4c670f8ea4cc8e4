"""How a bench tells its user where it stands: a bar on a terminal, and a line for each engine done."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vllm_dare.evaluation.bench import Bench


class BenchProgress:
    """A display that is fed with the events of `bench.run`.

    Args:
        bench: what is run.
        console: where to.
    """

    def __init__(self, bench: Bench, console: Console) -> None:
        self._bench, self._console = bench, console
        self._rows_of_arm = bench.limit * len(bench.cells)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("documents, eta"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        total = self._rows_of_arm * len(bench.arms) * bench.repeats
        self._task = self._progress.add_task("", total=total)
        self._done = self._in_engine = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, kind: str, event: dict[str, Any]) -> None:
        """Show one event."""
        if kind == "engine":
            self._describe(f"{_where(event, self._bench)}: starting")
        elif kind == "cell":
            what = f"temperature {event['temperature']:g}, {event['concurrency']} at a time"
            self._describe(f"repeat {event['repeat']}/{self._bench.repeats}, {event['arm']}: {what}")
        elif kind == "progress":
            self._show(event["rows"])
        elif kind == "measured":
            self._in_engine += self._bench.limit
            self._show(0)
        elif kind == "over":
            self._end_engine(event)

    def _end_engine(self, event: dict[str, Any]) -> None:
        """Its share of the work is over, whether it was done or not."""
        self._done += self._rows_of_arm * len(event["arms"])
        self._in_engine = 0
        self._show(0)
        if event["seconds"] is None:
            return
        how = "failed" if "log" in event else "done"
        self._console.print(
            f"{_where(event, self._bench)}: {how} in {event['seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )

    def _describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def _show(self, rows: int) -> None:
        self._progress.update(self._task, completed=self._done + self._in_engine + rows)


def _where(event: dict[str, Any], bench: Bench) -> str:
    return f"repeat {event['repeat']}/{bench.repeats}, {' and '.join(event['arms'])}"
