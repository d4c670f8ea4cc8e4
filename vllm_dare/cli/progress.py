"""Progress bars of commands that work in several steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

ProgressOf = Callable[[str], Callable[[int, int | None], None]]


@contextmanager
def progress_bars() -> Iterator[ProgressOf]:
    """Bars on stderr, each added when first needed; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def progress_of(description: str) -> Callable[[int, int | None], None]:
            task = progress.add_task(description, total=None, start=False, visible=False)

            def update(done: int, total: int | None) -> None:
                progress.start_task(task)
                progress.update(task, completed=done, total=total, visible=True)

            return update

        yield progress_of
