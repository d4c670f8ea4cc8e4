"""The plugin entry point, and the only module that patches vLLM: a ledger of what, why and until when.

`register` runs in every vLLM process and must cost nothing where DARE is not configured: it wraps one
method of a module that is loaded anyway. Everything else is applied when a DARE configuration is seen
(front end) or a `DareProposer` is built (worker).
"""

import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_dare.engine import request_meters, spans
from vllm_dare.engine.configured import mentions_dare
from vllm_dare.engine.installed import SUPPORTED_VLLM
from vllm_dare.engine.orphans import end_with_run
from vllm_dare.errors import ConfigError

logger = logging.getLogger("vllm.vllm_dare")

_MARK = "__vllm_dare_patch__"
_START = "vllm_dare.engine.start"


@dataclass(frozen=True)
class Patch:
    """One patched function of vLLM.

    Attributes:
        name: what the ledger calls it.
        module, qualname: where the function is.
        parameters: the parameter names that the patch relies on.
        why: what it is for, or which symptom it cures; until: when it can be deleted.
        wrap: makes the replacement from the original.
    """

    name: str
    module: str
    qualname: str
    parameters: tuple[str, ...]
    why: str
    until: str
    wrap: Callable[[Any], Any]

    def apply(self) -> None:
        """Replace the function, once.

        Raises:
            ConfigError: vLLM has moved or changed it.
        """
        owner, name, original = self._find()
        if getattr(original, _MARK, None) == self.name:
            return
        self._check_signature(original)
        replacement = functools.wraps(original)(self.wrap(original))
        setattr(replacement, _MARK, self.name)
        setattr(owner, name, replacement)

    def status(self) -> str:
        """ "applied", "ready" or a sentence that says what vLLM has moved."""
        try:
            _, _, original = self._find()
            if getattr(original, _MARK, None) == self.name:
                return "applied"
            self._check_signature(original)
        except ConfigError as error:
            return str(error)
        return "ready"

    def _find(self) -> tuple[Any, str, Any]:
        try:
            owner: Any = importlib.import_module(self.module)
            *path, name = self.qualname.split(".")
            for part in path:
                owner = getattr(owner, part)
            return owner, name, getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(self._moved(str(error))) from None

    def _check_signature(self, original: Any) -> None:
        found = inspect.signature(original).parameters
        missing = [name for name in self.parameters if name not in found]
        if missing:
            raise ConfigError(self._moved(f"it no longer takes {', '.join(missing)}"))

    def _moved(self, what: str) -> str:
        return (
            f"This vLLM's {self.module}.{self.qualname} is not what '{self.name}' needs ({what}): "
            f"install vllm {SUPPORTED_VLLM} or a newer vllm-dare."
        )


def _check_configuration(original: Any) -> Any:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        # Once loaded, it must hear of engines without DARE, too: they end what an earlier one began.
        if not mentions_dare(vllm_config) and _START not in sys.modules:
            return vllm_config
        from vllm_dare.engine.start import check_engine_config

        if check_engine_config(vllm_config):
            REQUEST_CHECK.apply()
            HTTP_REQUEST_CHECK.apply()
            _show_metrics()
            if request_meters.prepare(vllm_config):
                METERS_FRONT_END.apply()
                METERS_IN_ANSWERS.apply()
                if spans.are_made(vllm_config):
                    SPAN_FIGURES.apply()
                    SPAN_ATTRIBUTES.apply()
        return vllm_config

    return create_engine_config


def _show_metrics() -> None:
    """Have `/metrics` show our numbers, whichever registry it is answered from."""
    from prometheus_client import REGISTRY

    from vllm_dare.engine import metrics_endpoint

    metrics_endpoint.prepare_directory()
    metrics_endpoint.register(REGISTRY)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        METRICS_OF_SEVERAL.apply()


def _collect_ours(original: Any) -> Any:
    def collect(self: Any) -> Any:
        from vllm_dare.engine.metrics_endpoint import DareCollector

        return [*original(self), *DareCollector().collect()]

    return collect


def _check_request(original: Any) -> Any:
    def validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_dare.engine.start import check_request

        check_request(self.vllm_config, params)
        return original(self, params, *args, **kwargs)

    return validate_params


def _check_http_request(original: Any) -> Any:
    def from_optional(*args: Any, **kwargs: Any) -> Any:
        from vllm_dare.engine.start import check_http_request

        check_http_request(kwargs.get("extra_args"))
        return original(*args, **kwargs)

    return from_optional


def _our_drafter(runner: Any) -> Any:
    """The runner's drafter if it is a `DareProposer`, else None."""
    from vllm_dare.engine.proposer import DareProposer

    drafter = getattr(runner, "drafter", None)
    return drafter if isinstance(drafter, DareProposer) else None


def _bind_runner(original: Any) -> Any:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        drafter = _our_drafter(self)
        if drafter is not None:
            drafter.bind(self)
            # vLLM drops the drafts of a whole batch when one request is within num_speculative_tokens of
            # max_model_len; our drafts are cut to length per request.
            self._input_fits_in_drafter = lambda metadata: metadata is not None
        return result

    return load_model


def _report_meters(original: Any) -> Any:
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        drafter = _our_drafter(self)
        if drafter is not None:
            drafter.report_meters(output)
        return output

    return sample_tokens


def _close_drafter(original: Any) -> Any:
    def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        drafter = _our_drafter(self)
        if drafter is not None:
            drafter.close()
        return original(self, *args, **kwargs)

    return shutdown


def _relax(original: Any) -> Any:
    names = tuple(inspect.signature(original).parameters)

    def rejection_sample(*args: Any, **kwargs: Any) -> Any:
        from vllm.v1.sample import rejection_sampler

        from vllm_dare.verification.sampler import current_relaxation

        relaxation = current_relaxation.get()
        if relaxation is None:
            return original(*args, **kwargs)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        with relaxation.around(arguments, rejection_sampler.generate_uniform_probs):
            return original(*args, **kwargs)

    return rejection_sample


def _draw_once(original: Any) -> Any:
    def generate_uniform_probs(*args: Any, **kwargs: Any) -> Any:
        from vllm_dare.verification.sampler import current_relaxation

        relaxation = current_relaxation.get()
        drawn = relaxation.take_uniform() if relaxation is not None else None
        return original(*args, **kwargs) if drawn is None else drawn

    return generate_uniform_probs


def _expand_on_cpu(_original: Any) -> Any:
    import torch

    def expand_batch_to_tokens(
        x: torch.Tensor,
        cu_num_tokens: torch.Tensor,
        num_tokens: int,
        replace_from: int = 0,
        replace_to: int = 0,
    ) -> Any:
        counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
        replaced = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
        return replaced.repeat_interleave(counts, output_size=num_tokens)

    return expand_batch_to_tokens


def _rewind_generators(original: Any) -> Any:
    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        states = [(generator, generator.get_state()) for generator in _partial_prefills(self).values()]
        output = original(self, *args, **kwargs)
        for generator, state in states:
            generator.set_state(state)
        return output

    return sample


def _hide_generators(original: Any) -> Any:
    def bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        hidden = _partial_prefills(self)
        for row in hidden:
            del generators[row]
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(hidden)

    return bookkeeping_sync


def _partial_prefills(runner: Any) -> dict[int, Any]:
    """The generators of the rows whose prompt is not done: what they sample is thrown away."""
    discarded = runner.discard_request_mask.np
    generators = runner.input_batch.generators
    return {row: generator for row, generator in generators.items() if discarded[row]}


CONFIGURATION_CHECK = Patch(
    name="configuration check",
    module="vllm.engine.arg_utils",
    qualname="EngineArgs.create_engine_config",
    parameters=("self",),
    why="A bad pool or setting is said in one sentence in the front end, not by a worker's traceback.",
    until="vLLM lets a custom_class proposer check its configuration before workers start.",
    wrap=_check_configuration,
)
REQUEST_CHECK = Patch(
    name="request check",
    module="vllm.v1.engine.input_processor",
    qualname="InputProcessor._validate_params",
    parameters=("self", "params"),
    why="An unknown dare_ key or a bad value is the client's error (HTTP 400), not silently ignored.",
    until="vLLM has a hook for validating extra_args that works under speculative decoding.",
    wrap=_check_request,
)
HTTP_REQUEST_CHECK = Patch(
    name="request check, HTTP",
    module="vllm.sampling_params",
    qualname="SamplingParams.from_optional",
    parameters=("extra_args",),
    why="The request check comes too late for a streamed request: its answer, a 200, has begun by then.",
    until="As the request check.",
    wrap=_check_http_request,
)
METRICS_OF_SEVERAL = Patch(
    name="metrics of several API servers",
    module="prometheus_client.multiprocess",
    qualname="MultiProcessCollector.collect",
    parameters=("self",),
    why=(
        "Several API servers answer `/metrics` from registries of their own making, which know of vLLM's "
        "metrics alone; all of these ask this collector."
    ),
    until="vLLM lets plugins add collectors to it.",
    wrap=_collect_ours,
)
METERS_FRONT_END = Patch(
    name="request meters, front end",
    module="vllm.v1.engine.output_processor",
    qualname="RequestState.make_request_output",
    parameters=("kv_transfer_params",),
    why="What relaxing did for a request arrives in a field that is meant for others, and is taken out here.",
    until="vLLM's outputs carry values of plugins.",
    wrap=request_meters.taking_meters_out,
)
METERS_IN_ANSWERS = Patch(
    name="request meters, answers",
    module="vllm.v1.metrics.stats",
    qualname="RequestSpecDecodeMetrics.to_dict",
    parameters=("self",),
    why="The server's answers show what relaxing did beside vLLM's own draft metrics.",
    until="As the request meters in the front end.",
    wrap=request_meters.showing_meters,
)
SPAN_FIGURES = Patch(
    name="spans, figures",
    module="vllm.v1.engine.output_processor",
    qualname="OutputProcessor.do_tracing",
    parameters=("engine_core_output",),
    why="Where tracing is on, the span of a request says what was drafted, accepted and relaxed for it.",
    until="As the request meters in the front end.",
    wrap=spans.handing_figures,
)
SPAN_ATTRIBUTES = Patch(
    name="spans, attributes",
    module="vllm.v1.engine.output_processor",
    qualname="instrument_manual",
    parameters=("attributes",),
    why="The one place that has a span's attributes before it is made and sent.",
    until="OutputProcessor.do_tracing has a method to override that returns them.",
    wrap=spans.adding_figures,
)
RUNNER_BINDING = Patch(
    name="runner binding",
    module="vllm.v1.worker.gpu_model_runner",
    qualname="GPUModelRunner.load_model",
    parameters=("self",),
    why="The proposer is told neither which requests it drafts for nor their metadata; the runner knows.",
    until="vLLM passes requests and sampling parameters to custom_class proposers.",
    wrap=_bind_runner,
)
CPU_RUNNER_BINDING = Patch(
    name="runner binding, CPU",
    module="vllm.v1.worker.cpu_model_runner",
    qualname="CPUModelRunner.load_model",
    parameters=("self",),
    why="As the runner binding: the CPU runner has a load_model of its own.",
    until="As the runner binding.",
    wrap=_bind_runner,
)
RUNNER_SHUTDOWN = Patch(
    name="runner shutdown",
    module="vllm.v1.worker.gpu_model_runner",
    qualname="GPUModelRunner.shutdown",
    parameters=("self",),
    why="What was learned last goes to disk before the engine ends, of which vLLM tells no proposer.",
    until="vLLM closes custom_class proposers.",
    wrap=_close_drafter,
)
METERS_WORKER = Patch(
    name="request meters, worker",
    module="vllm.v1.worker.gpu_model_runner",
    qualname="GPUModelRunner.sample_tokens",
    parameters=("self",),
    why="What relaxing did in a step goes with the step's output; nothing else leaves the worker.",
    until="As the request meters in the front end.",
    wrap=_report_meters,
)
RELAXED_ACCEPTANCE = Patch(
    name="relaxed acceptance",
    module="vllm.v1.sample.rejection_sampler",
    qualname="rejection_sample",
    parameters=(
        "draft_token_ids",
        "num_draft_tokens",
        "cu_num_draft_tokens",
        "target_logits",
        "sampling_metadata",
    ),
    why="The one place that sees processed logits and draft tokens before vLLM's kernels decide.",
    until="RejectionSampler.forward has a method to override between processing and deciding.",
    wrap=_relax,
)
RELAXED_RANDOMNESS = Patch(
    name="relaxed acceptance, random numbers",
    module="vllm.v1.sample.rejection_sampler",
    qualname="generate_uniform_probs",
    parameters=("num_tokens", "num_draft_tokens", "generators", "device"),
    why=(
        "Whether vLLM's own rule accepts a sampled token hangs on its random number: it is drawn before the "
        "relaxed rule decides, and handed to vLLM's kernel after."
    ),
    until="As the relaxed acceptance.",
    wrap=_draw_once,
)
CPU_EXPANSION = Patch(
    name="per-token sampling parameters on CPU",
    module="vllm.v1.sample.rejection_sampler",
    qualname="expand_batch_to_tokens",
    parameters=("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    why=(
        "vLLM's CPU kernel writes the result into a converted copy and drops it, so temperature, top-k and "
        "top-p of every sampled request under speculation are uninitialised memory."
    ),
    until="_expand_kernel_impl in vllm/utils/cpu_triton_utils.py copies its result back (not in 0.33).",
    wrap=_expand_on_cpu,
)
CPU_SEED_REWIND = Patch(
    name="seeds in chunked prefill on CPU, sampling",
    module="vllm.v1.worker.gpu_model_runner",
    qualname="GPUModelRunner._sample",
    parameters=("self",),
    why=(
        "A seeded request whose prompt takes several steps kills the engine on CPU: vLLM takes back the "
        "random numbers of the unfinished prompt with set_offset, which CPU generators do not have. They are "
        "taken back through the generator's state instead."
    ),
    until="GPUModelRunner._bookkeeping_sync rewinds CPU generators itself (not in 0.33).",
    wrap=_rewind_generators,
)
CPU_SEED_BOOKKEEPING = Patch(
    name="seeds in chunked prefill on CPU, bookkeeping",
    module="vllm.v1.worker.gpu_model_runner",
    qualname="GPUModelRunner._bookkeeping_sync",
    parameters=("self",),
    why="As above: keeps the failing set_offset from being called.",
    until="As above.",
    wrap=_hide_generators,
)
_CPU_PATCHES = (CPU_RUNNER_BINDING, CPU_EXPANSION, CPU_SEED_REWIND, CPU_SEED_BOOKKEEPING)


def ledger() -> tuple[Patch, ...]:
    """Every patch that this platform gets, in the order in which they are applied."""
    return (
        CONFIGURATION_CHECK,
        REQUEST_CHECK,
        HTTP_REQUEST_CHECK,
        METRICS_OF_SEVERAL,
        METERS_FRONT_END,
        METERS_IN_ANSWERS,
        SPAN_FIGURES,
        SPAN_ATTRIBUTES,
        *_worker_patches(),
    )


def _worker_patches() -> tuple[Patch, ...]:
    from vllm.platforms import current_platform

    return (
        RUNNER_BINDING,
        RUNNER_SHUTDOWN,
        METERS_WORKER,
        RELAXED_ACCEPTANCE,
        RELAXED_RANDOMNESS,
        *(_CPU_PATCHES if current_platform.is_cpu() else ()),
    )


def register() -> None:
    """The `vllm.general_plugins` entry point; idempotent and cheap.

    Only the front end builds engine configurations, and it has loaded vLLM's argument module by the time
    it loads plugins; the other processes need nothing from us until a proposer is built.
    """
    end_with_run()
    if CONFIGURATION_CHECK.module not in sys.modules:
        return
    try:
        CONFIGURATION_CHECK.apply()
    except ConfigError as error:
        # Somebody who does not use DARE must not be stopped by it; DareProposer says it again if used.
        logger.warning("vllm-dare is installed but cannot work here: %s", error)


def prepare_worker() -> None:
    """Apply the worker's patches; called when a `DareProposer` is built.

    Raises:
        ConfigError: this vLLM is not one that vllm-dare supports, or it was told not to load this plugin.
    """
    from vllm import envs

    if envs.VLLM_PLUGINS is not None and "vllm_dare" not in envs.VLLM_PLUGINS:
        raise ConfigError("VLLM_PLUGINS leaves out vllm_dare: add it to the list, or unset VLLM_PLUGINS.")
    for patch in _worker_patches():
        patch.apply()
