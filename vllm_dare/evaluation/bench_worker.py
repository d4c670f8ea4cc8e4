"""What a bench does inside vLLM's worker, in every arm alike: time the look-up, and make cells start equal.

vLLM mixes this class into its worker (``worker_extension_cls``) and calls its methods by name
(``collective_rpc``). It patches instances, never classes, apart from the mends below.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

_POOL_TEXT = "pool-"  # begins the ids of the pool's documents in vLLM's suffix cache


@dataclass
class _Clock:
    """Seconds spent in a function, and calls of it."""

    seconds: float = 0.0
    calls: int = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1

        return timed


class BenchWorker:
    """Methods that vLLM's worker gets; their names must not meet those of the worker."""

    model_runner: Any
    bench_look_up: _Clock
    bench_step: _Clock

    def bench_prepare(self, pool: str | None) -> dict[str, Any]:
        """Start the clocks, mend vLLM's CPU code, and give the pool's texts to vLLM's suffix decoding.

        Args:
            pool: the pool directory that DARE drafts from; None if it has none.

        Returns:
            ``device``, its name, and ``suffix_texts``, how many texts the suffix decoding was given.
        """
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            _mend_cpu()
        runner = self.model_runner
        self.bench_look_up, self.bench_step = _Clock(), _Clock()
        for name in ("execute_model", "sample_tokens"):
            setattr(runner, name, self.bench_step.around(getattr(runner, name)))
        drafter = getattr(runner, "drafter", None)
        if drafter is not None:
            drafter.propose = self.bench_look_up.around(drafter.propose)
        cache = getattr(drafter, "suffix_cache", None)
        texts = 0 if cache is None or pool is None else _fill_suffix_cache(cache, pool)
        return {"device": current_platform.get_device_name(), "suffix_texts": texts}

    def bench_reset(self) -> None:
        """Forget what the last cell took and taught: its times, and its texts in a drafter that learns."""
        self.bench_look_up.seconds = self.bench_step.seconds = 0.0
        self.bench_look_up.calls = self.bench_step.calls = 0
        cache = getattr(getattr(self.model_runner, "drafter", None), "suffix_cache", None)
        if cache is not None:
            _forget_learned(cache)

    def bench_times(self) -> dict[str, float]:
        """Seconds in the look-up and in whole steps since `bench_reset`, and the number of look-ups."""
        return {
            "look_up_seconds": self.bench_look_up.seconds,
            "look_ups": self.bench_look_up.calls,
            "step_seconds": self.bench_step.seconds,
        }


def _mend_cpu() -> None:
    """Give vLLM's own methods the mends that DARE's engine has on CPU (see the ledger for what and why).

    Without them sampled speculation reads uninitialised temperatures, and a seeded prompt that takes
    several steps ends the engine: there would be nothing to compare with.
    """
    from vllm_dare.engine.plugin import CPU_EXPANSION, CPU_SEED_BOOKKEEPING, CPU_SEED_REWIND

    for patch in (CPU_EXPANSION, CPU_SEED_REWIND, CPU_SEED_BOOKKEEPING):
        patch.apply()


def _fill_suffix_cache(cache: Any, directory: str) -> int:
    from vllm_dare.pool.pool import RetrievalPool

    with RetrievalPool.open(directory) as pool:
        count = 0
        for document in _documents(pool):
            name = f"{_POOL_TEXT}{count}"
            cache.start_request(name, np.empty(0, np.int32))
            cache.add_active_response(name, np.array(document))  # a copy: it takes no read-only array
            cache.stop_request(name)
            count += 1
    return count


def _documents(pool: Any) -> Iterable[np.ndarray]:
    """Every document of the pool, once."""
    segments = pool.global_segments()
    if not segments:
        segments = [segment for group in pool.groups for segment in pool.group_segments(group)]
    for segment in segments:
        yield from segment.documents()


def _forget_learned(cache: Any) -> None:
    """Back to the pool's texts: vLLM's drafter ends a request only when it next drafts for another."""
    for name in list(cache.active_requests):
        cache.stop_request(name)
    for name in list(cache.cached_requests):
        if not str(name).startswith(_POOL_TEXT):
            cache.evict_cached_response(name)
