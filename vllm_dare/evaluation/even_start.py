"""What gives measurements on one engine the same start, so that none profits from the one before."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vllm_dare.errors import DareError
from vllm_dare.generation.prompts import PromptRow

# At least so many rows, of at most so many tokens: DARE's draft budget learns from its first steps.
_WARM_UP_ROWS, _WARM_UP_TOKENS = 8, 128
_RESET_TRIES, _RESET_SECONDS = 50, 0.1


def warm_up_rows(rows: Sequence[PromptRow], concurrency: int, max_tokens: int) -> list[PromptRow]:
    """The rows of a short warm-up, as many as are in flight at least.

    Args:
        rows: those that are measured afterwards.
        concurrency: requests in flight.
        max_tokens: the most tokens that they get when they are measured.
    """
    first = rows[: max(_WARM_UP_ROWS, concurrency)]
    return [replace(row, max_tokens=min(_WARM_UP_TOKENS, max_tokens)) for row in first]


def empty_prefix_cache(llm: Any, stopped: Callable[[], bool] = lambda: False) -> None:
    """Empty vLLM's prefix cache, once the engine has let go of the last request's blocks.

    Args:
        llm: a ``vllm.LLM``.
        stopped: ends the waiting.

    Raises:
        DareError: vLLM does not.
    """
    for _ in range(_RESET_TRIES):
        if stopped() or llm.reset_prefix_cache():
            return
        time.sleep(_RESET_SECONDS)
    raise DareError("vLLM did not empty its prefix cache, so that what is measured could not be compared.")
