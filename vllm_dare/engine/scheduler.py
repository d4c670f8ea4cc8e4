"""vLLM's scheduler, which also hands on what relaxing did for a request with the request's last output."""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from vllm_dare.engine.request_meters import METERS, TRANSPORT_KEY


class DareScheduler(Scheduler):  # type: ignore[misc]
    """`Scheduler`; the only thing that it adds is a key in the last output's ``kv_transfer_params``.

    That dictionary is the one field of vLLM's outputs that takes values of ours to the front end, which takes
    them out again (see the patch "request meters, front end").
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dare_meters: dict[str, dict[str, float]] = {}

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """See `Scheduler.update_from_output`."""
        self._dare_meters.update(getattr(model_runner_output, METERS, None) or {})
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self._dare_meters:
            for client in outputs.values():
                for output in client.outputs:
                    self._attach(output)
            self._forget_gone()
        return outputs

    def _attach(self, output: Any) -> None:
        if output.finish_reason is None:
            return
        meters = self._dare_meters.pop(output.request_id, None)
        if meters is not None:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), TRANSPORT_KEY: meters}

    def _forget_gone(self) -> None:
        """Requests that were aborted have no last output."""
        if len(self._dare_meters) > len(self.requests):
            self._dare_meters = {
                key: meters for key, meters in self._dare_meters.items() if key in self.requests
            }
