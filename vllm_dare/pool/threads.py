"""Work on many segments at once; threads are enough, as hashing and sorting release the interpreter lock."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_unordered(
    function: Callable[[T], R], items: Iterable[T], max_workers: int | None = None
) -> Iterator[R]:
    """``function`` of each item, in the order of completion.

    The first exception, Ctrl-C too, is raised once the calls in progress have ended; the others are dropped.

    Args:
        function: must be safe to call from several threads.
        items: its arguments.
        max_workers: how many threads; by default one for each usable core.
    """
    workers = max_workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers, thread_name_prefix="vllm-dare-pool") as executor:
        futures = [executor.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
