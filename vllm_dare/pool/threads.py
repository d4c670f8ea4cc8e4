"""Work on many segments at once; threads are enough, as hashing and sorting release the interpreter lock."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def run_all(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    done: Callable[[R], None],
    workers: int | None = None,
) -> list[R]:
    """``function`` of each item.

    The first exception, Ctrl-C too, is raised once the calls in progress have ended; the others are dropped.

    Args:
        function: must be safe to call from several threads.
        items: its arguments.
        done: called in this thread with each result as it comes.
        workers: how many threads; by default one for each usable core.
    """
    workers = workers or usable_cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="vllm-dare-pool") as executor:
        futures = [executor.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                done(future.result())
        finally:
            executor.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
