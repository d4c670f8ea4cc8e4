"""vLLM's scheduler, which also hands on what relaxing did for a request, and what its span is to say."""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from vllm_dare.engine import spans
from vllm_dare.engine.request_meters import METERS, TRANSPORT_KEY


class DareScheduler(Scheduler):  # type: ignore[misc]
    """`Scheduler`; the only thing that it adds are keys in outputs' ``kv_transfer_params``.

    That dictionary is the one field of vLLM's outputs that takes values of ours to the front end, which takes
    them out again (see the patch "request meters, front end").
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dare_meters: dict[str, dict[str, float]] = {}
        self._dare_groups: dict[str, str | None] = {}
        self._dare_makes_spans = spans.are_made(self.vllm_config)
        self._dare_hides_drafts = self._dare_makes_spans and self.spec_decode_metrics_level == "none"
        if self._dare_hides_drafts:
            self.spec_decode_metrics_level: str = "summary"  # counted for spans, not for answers

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """See `Scheduler.update_from_output`."""
        self._dare_meters.update(getattr(model_runner_output, METERS, None) or {})
        self._dare_groups.update(getattr(model_runner_output, spans.GROUPS, None) or {})
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self._dare_meters or self._dare_makes_spans:
            for client in outputs.values():
                for output in client.outputs:
                    self._attach(output)
            self._forget_gone()
        return outputs

    def _attach(self, output: Any) -> None:
        """To the last output; for spans to each, since the front end may end a request at a stop string."""
        if output.finish_reason is None and not self._dare_makes_spans:
            return
        carried: dict[str, Any] = {}
        meters = self._dare_meters.get(output.request_id)
        if meters is not None:
            carried[TRANSPORT_KEY] = meters
        if self._dare_makes_spans:
            carried[spans.TRANSPORT_KEY] = spans.attributes(
                self._drafts(output), meters, self._dare_groups.get(output.request_id)
            )
        if carried:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), **carried}
        if output.finish_reason is not None:
            self._dare_meters.pop(output.request_id, None)
            self._dare_groups.pop(output.request_id, None)

    def _drafts(self, output: Any) -> Any:
        """What vLLM counted of a request's drafts."""
        if output.finish_reason is None:
            request = self.requests.get(output.request_id)
            return None if request is None else request.spec_decode_metrics
        drafts = output.spec_decode_metrics
        if self._dare_hides_drafts:
            output.spec_decode_metrics = None
        return drafts

    def _forget_gone(self) -> None:
        """Requests that were aborted have no last output."""
        for known in (self._dare_meters, self._dare_groups):
            if len(known) > len(self.requests):
                for key in known.keys() - self.requests.keys():
                    del known[key]
