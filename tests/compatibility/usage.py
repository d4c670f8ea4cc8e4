"""What the package itself takes from vLLM, read from its source: so that the ledger cannot forget anything.

Names that it imports are plain to see. Attributes are those of the expressions that hold an object of vLLM's,
which `HOLDERS` tells for each module.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.compatibility.names import Function, targets

PACKAGE = Path(__file__).resolve().parents[2] / "vllm_dare"

RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
CONFIG = "vllm.config:VllmConfig"
PARAMS = "vllm.sampling_params:SamplingParams"
OUTPUT = "vllm.v1.engine:EngineCoreOutput"
REQUEST_STATE = "vllm.v1.engine.output_processor:RequestState"
CACHED_REQUEST = "vllm.v1.worker.gpu_input_batch:CachedRequestState"
INPUT_BATCH = "vllm.v1.worker.gpu_input_batch:InputBatch"
SPECULATIVE = "vllm.config:SpeculativeConfig"
MODEL_CONFIG = "vllm.config:ModelConfig"
PARALLEL = "vllm.config:ParallelConfig"
SCHEDULER_CONFIG = "vllm.config:SchedulerConfig"
OBSERVABILITY = "vllm.config:ObservabilityConfig"
BUFFER = "vllm.v1.utils:CpuGpuBuffer"
TOKENIZER = "vllm.tokenizers:TokenizerLike"
SPEC_METADATA = "vllm.v1.spec_decode.metadata:SpecDecodeMetadata"
SAMPLING_METADATA = "vllm.v1.sample.metadata:SamplingMetadata"
SAMPLER = "vllm.v1.sample.rejection_sampler:RejectionSampler"
MODULE_SAMPLER = "vllm.v1.sample.rejection_sampler"
PLATFORM = "vllm.platforms.interface:Platform"
LLM = "vllm:LLM"
LLM_ENGINE = "vllm.v1.engine.llm_engine:LLMEngine"
CORE_CLIENT = "vllm.v1.engine.core_client:SyncMPClient"
COMPLETION = "vllm.outputs:CompletionOutput"
REQUEST_OUTPUT = "vllm.outputs:RequestOutput"

_OF_CONFIG = {
    ".speculative_config": SPECULATIVE,
    ".model_config": MODEL_CONFIG,
    ".parallel_config": PARALLEL,
    ".scheduler_config": SCHEDULER_CONFIG,
    ".observability_config": OBSERVABILITY,
}


def _configuration(expression: str) -> dict[str, str]:
    return {expression: CONFIG} | {expression + part: what for part, what in _OF_CONFIG.items()}


def _runner(expression: str) -> dict[str, str]:
    return {
        expression: RUNNER,
        f"{expression}.input_batch": INPUT_BATCH,
        f"{expression}.query_start_loc": BUFFER,
        f"{expression}.discard_request_mask": BUFFER,
        f"{expression}.parallel_config": PARALLEL,
    }


# Attributes that the package itself puts on objects of vLLM's.
OURS = {"dare", "__dict__", "__init__"}

# Module below vllm_dare -> expression in its source -> the class of vLLM's (or classes, divided by |)
# whose object it holds, or the module.
HOLDERS: dict[str, dict[str, str]] = {
    "engine.admin": {
        "engine_client": "vllm.engine.protocol:EngineClient",
        **_configuration("vllm_config"),
        "envs": "vllm.envs",
    },
    "engine.configured": {
        **_configuration("vllm_config"),
        "speculative": SPECULATIVE,
    },
    "engine.learning": {"request": CACHED_REQUEST, "params": PARAMS},
    "engine.learning_worker": {
        "self": "vllm.v1.worker.gpu_worker:Worker",
        "self.model_runner": RUNNER,
    },
    "engine.plugin": {
        **_runner("runner"),
        # The runner in the wrappers of its methods, the input processor in `_check_request`.
        "self": RUNNER,
        "self.input_batch": INPUT_BATCH,
        "current_platform": PLATFORM,
        "rejection_sampler": MODULE_SAMPLER,
        "envs": "vllm.envs",
    },
    "engine.proposer": {
        **_configuration("vllm_config"),
        **_runner("runner"),
        **_runner("self._runner"),
        "model_config": MODEL_CONFIG,
        "get_tp_group()": "vllm.distributed.parallel_state:GroupCoordinator",
        "request": CACHED_REQUEST,
        "state.request": CACHED_REQUEST,
        "params": PARAMS,
        "output": "vllm.v1.outputs:ModelRunnerOutput",
        "tokenizer": TOKENIZER,
    },
    "engine.request_meters": {
        **_configuration("vllm_config"),
        "scheduler": SCHEDULER_CONFIG,
        "self": REQUEST_STATE,
    },
    "engine.scheduler": {
        "output": OUTPUT,
        "request": "vllm.v1.request:Request",
        "client": "vllm.v1.engine:EngineCoreOutputs",
        "self": "vllm.v1.core.sched.scheduler:Scheduler",
    },
    "engine.spans": {
        **_configuration("vllm_config"),
        "drafts": "vllm.v1.metrics.stats:RequestSpecDecodeMetrics",
        "engine_core_output": OUTPUT,
    },
    "engine.start": {
        **_configuration("vllm_config"),
        "speculative": SPECULATIVE,
        "parallel": PARALLEL,
        "model_config": MODEL_CONFIG,
        "params": PARAMS,
        "cached_tokenizer_from_config(model_config)": TOKENIZER,
    },
    "evaluation.bench_child": {"self._llm": LLM},
    "evaluation.bench_worker": {
        "self": "vllm.v1.worker.gpu_worker:Worker",
        "self.model_runner": RUNNER,
        "runner": RUNNER,
        "current_platform": PLATFORM,
    },
    "evaluation.even_start": {"llm": LLM},
    "evaluation.target_score": {
        "self._llm": LLM,
        "llm": LLM,
        "llm.llm_engine": LLM_ENGINE,
        **_configuration("llm.llm_engine.vllm_config"),
        "output": REQUEST_OUTPUT,
        "step[token]": "vllm.logprobs:Logprob",
    },
    "generation.engine": {
        "llm": LLM,
        "llm.llm_engine": LLM_ENGINE,
        "llm.llm_engine.engine_core": CORE_CLIENT,
    },
    "generation.learned": {"llm": LLM},
    "generation.meter": {
        "llm": LLM,
        "self._llm": LLM,
        "metric": "vllm.v1.metrics.reader:Counter|vllm.v1.metrics.reader:Histogram",
    },
    "generation.runner": {
        "llm": LLM,
        "llm.llm_engine": LLM_ENGINE,
        **_configuration("llm.llm_engine.vllm_config"),
        "self._llm": LLM,
        "self._llm.llm_engine": LLM_ENGINE,
        "output": REQUEST_OUTPUT,
        "completion": COMPLETION,
    },
    "generation.watch": {
        "llm": LLM,
        "llm.llm_engine": LLM_ENGINE,
        "core": CORE_CLIENT,
        "resources": "vllm.v1.engine.core_client:BackgroundResources",
    },
    "verification.sampler": {
        "metadata": SPEC_METADATA,
        "sampling_metadata": SAMPLING_METADATA,
        "sampling": SAMPLING_METADATA,
        "self": SAMPLER,
        "native": SAMPLER,
    },
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name below ``vllm_dare``."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of vLLM (``vllm.v1.outputs:SamplerOutput``) that a module imports, and the lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_vllm(node.module or ""):
            yield from ((f"{node.module}:{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if _is_vllm(alias.name))


def attributes(module: str, tree: ast.Module) -> Iterator[tuple[tuple[str, ...], int]]:
    """Attributes of vLLM's objects (``vllm.outputs:RequestOutput.finished``) that a module uses; the lines.

    Where an expression may hold objects of several classes, the attribute is one of any of them.
    """
    holders, own = HOLDERS.get(module, {}), _own(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            expression, name = ast.unparse(node.value), node.attr
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            expression, name = ast.unparse(node.args[0]), str(node.args[1].value)
        else:
            continue
        if expression in holders and name not in OURS and not (expression == "self" and name in own):
            yield (
                tuple(
                    f"{holder}.{name}" if ":" in holder else f"{holder}:{name}"
                    for holder in holders[expression].split("|")
                ),
                node.lineno,
            )


def _own(tree: ast.Module) -> set[str]:
    """Attributes that the module's own classes define: objects of a subclass of vLLM's have these, too."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own |= {inner.name for inner in node.body if isinstance(inner, Function)}
            if node.decorator_list:  # a dataclass; elsewhere, an annotation may be of what vLLM sets
                own |= {ast.unparse(inner.target) for inner in node.body if isinstance(inner, ast.AnnAssign)}
            own |= {
                target.attr
                for inner in ast.walk(node)
                for target in targets(inner)
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
            }
    return own


def _is_vllm(module: str) -> bool:
    return module == "vllm" or module.startswith("vllm.")
