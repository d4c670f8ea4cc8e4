"""DARE's figures on the span that vLLM makes of each request, where its tracing is on.

What a request drafted and accepted is counted by vLLM's scheduler, what relaxing did and whose text drafted
is known in the worker; `DareScheduler` sends both to the front end, where the span is made when the request
is over. Nothing of this is applied or counted where tracing is off (``otlp_traces_endpoint`` is not set).
"""

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

GROUPS = "vllm_dare_groups"  # attribute of the worker's output: request id -> the label of its group
TRANSPORT_KEY = "vllm_dare_span"  # key in an output's kv_transfer_params: attributes of the span
_PREFIX = "vllm_dare."

_figures: ContextVar[Mapping[str, Any] | None] = ContextVar("figures_of_span", default=None)


def are_made(vllm_config: Any) -> bool:
    """Whether vLLM makes a span of each request."""
    return vllm_config.observability_config.otlp_traces_endpoint is not None


def attributes(
    drafts: Any, meters: Mapping[str, float] | None, group: str | None
) -> dict[str, str | int | float]:
    """What the span of a request says.

    Args:
        drafts: vLLM's ``RequestSpecDecodeMetrics`` of the request; None where nothing was counted.
        meters: what relaxing did, see `vllm_dare.verification.meters.Meters`; None for a strict request.
        group: whose text drafts, as metrics count it; None for a request without a group.
    """
    found: dict[str, str | int | float] = {}
    if drafts is not None:
        found["draft_steps"] = sum(drafts.histogram)
        found["draft_tokens"] = drafts.num_draft_tokens
        found["accepted_tokens"] = sum(length * count for length, count in enumerate(drafts.histogram))
    if meters is not None:
        found["relaxed_tokens"] = int(meters["relaxed"])
        found["given_up"] = meters["given_up"]
    if group is not None:
        found["group"] = group
    return {f"{_PREFIX}{name}": value for name, value in found.items()}


def handing_figures(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `OutputProcessor.do_tracing`: the span that it makes gets what came with the request's output."""

    def do_tracing(self: Any, engine_core_output: Any, *args: Any, **kwargs: Any) -> Any:
        token = _figures.set((engine_core_output.kv_transfer_params or {}).get(TRANSPORT_KEY))
        try:
            return original(self, engine_core_output, *args, **kwargs)
        finally:
            _figures.reset(token)

    return do_tracing


def adding_figures(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `instrument_manual`, which makes spans: that of a request gets its figures."""
    signature = inspect.signature(original)

    def instrument_manual(*args: Any, **kwargs: Any) -> Any:
        figures = _figures.get()
        if figures is None:
            return original(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        call.arguments["attributes"] = {**(call.arguments.get("attributes") or {}), **figures}
        return original(*call.args, **call.kwargs)

    return instrument_manual
