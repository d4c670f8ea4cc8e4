"""How what relaxing did for a request comes back with it, where vLLM returns a request's draft metrics.

Set vLLM's ``per_request_spec_decode_metrics`` to "summary" (or "detailed"). Then
``output.outputs[0].spec_decode_metrics.dare`` and, on the server, ``metrics.speculative_decoding.dare`` of a
request with a relaxed rule hold `Meters.as_dict` (None, or nothing, without one). They go from the worker
with its output to the scheduler (`DareScheduler`), from there with the request's last output to the front
end, and there to vLLM's metrics.
"""

import inspect
from collections.abc import Callable
from typing import Any

from vllm_dare.engine import spans

METERS = "vllm_dare_meters"  # attribute of the worker's output: request id -> Meters.as_dict()
TRANSPORT_KEY = "vllm_dare_meters"  # key in an output's kv_transfer_params
_OURS = {TRANSPORT_KEY, spans.TRANSPORT_KEY}
SCHEDULER = "vllm_dare.engine.scheduler.DareScheduler"


def are_returned(vllm_config: Any) -> bool:
    """Whether the engine returns draft metrics with each request."""
    return bool(vllm_config.observability_config.per_request_spec_decode_metrics != "none")


def prepare(vllm_config: Any) -> bool:
    """Let the scheduler hand the meters on, where answers or spans want them and the user has no scheduler.

    Returns:
        Whether it does.
    """
    if not are_returned(vllm_config) and not spans.are_made(vllm_config):
        return False
    scheduler = vllm_config.scheduler_config
    if scheduler.scheduler_cls is None:
        scheduler.scheduler_cls = SCHEDULER
    return bool(scheduler.scheduler_cls == SCHEDULER)


def taking_meters_out(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `RequestState.make_request_output`: the meters move from the transport to vLLM's metrics."""

    signature = inspect.signature(original)

    def make_request_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        carried = call.arguments.get("kv_transfer_params")
        if carried and not _OURS.isdisjoint(carried):
            rest = {key: value for key, value in carried.items() if key not in _OURS}
            call.arguments["kv_transfer_params"] = rest or None
        if self.spec_decode_metrics is not None:
            self.spec_decode_metrics.dare = (carried or {}).get(TRANSPORT_KEY)
        return original(*call.args, **call.kwargs)

    return make_request_output


def showing_meters(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `RequestSpecDecodeMetrics.to_dict`, which makes the server's answer."""

    def to_dict(self: Any) -> dict[str, Any]:
        meters = getattr(self, "dare", None)
        return original(self) if meters is None else {**original(self), "dare": meters}

    return to_dict
