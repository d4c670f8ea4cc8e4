"""Every name of vLLM's that the package patches or relies on: where it is, what of it, for whom, and why.

The patched functions come from the patch ledger itself; the rest is here. `test_upstream_names` fails if the
package uses a name that is missing, or if one is here that it does not use.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tests.compatibility import usage as of
from vllm_dare.engine import plugin

Kind = Literal["exists", "takes", "matches", "has", "calls", "says"]


@dataclass(frozen=True)
class Seam:
    """One place of vLLM's that something relies on.

    Attributes:
        where: ``module:qualname``, or ``module`` alone.
        kind: what is asked of it: that it ``exists``; that the function ``takes`` parameters of these names,
            or that it ``matches`` these, all and in this order; that the class ``has`` these attributes (its
            bases' included); that the function or module ``calls`` something in this way (``f(a, b=c)``;
            ``f(..., b=c)`` with any others beside); that it ``says`` these strings.
        parts: of what, by kind; nothing for ``exists``.
        by: the modules that rely on it, below ``vllm_dare``.
        why: what for.
    """

    where: str
    kind: Kind
    parts: tuple[str, ...]
    by: tuple[str, ...]
    why: str


def exists(where: str, by: str, why: str) -> Seam:
    return Seam(where, "exists", (), tuple(by.split()), why)


def takes(where: str, parts: str, by: str, why: str) -> Seam:
    return Seam(where, "takes", tuple(parts.split()), tuple(by.split()), why)


def matches(where: str, parts: str, by: str, why: str) -> Seam:
    return Seam(where, "matches", tuple(parts.split()), tuple(by.split()), why)


def has(where: str, parts: str, by: str, why: str) -> Seam:
    return Seam(where, "has", tuple(parts.split()), tuple(by.split()), why)


def calls(where: str, call: str, by: str, why: str) -> Seam:
    return Seam(where, "calls", (call,), tuple(by.split()), why)


def says(where: str, parts: str, by: str, why: str) -> Seam:
    return Seam(where, "says", tuple(parts.split()), tuple(by.split()), why)


def patched() -> Iterator[Seam]:
    """What `vllm_dare.engine.plugin` replaces, for every platform."""
    for patch in vars(plugin).values():
        if isinstance(patch, plugin.Patch) and patch.module.startswith("vllm"):
            where = f"{patch.module}:{patch.qualname}"
            yield Seam(where, "takes", patch.parameters, ("engine.plugin",), f"patched: {patch.name}")


_RUNNER_MODULE = "vllm.v1.worker.gpu_model_runner"
_SAMPLER_MODULE = "vllm.v1.sample.rejection_sampler"
_OUTPUT_PROCESSOR = "vllm.v1.engine.output_processor"

# How vLLM comes to run the plugin and the proposer.
_LOADING = (
    says("vllm.plugins", "vllm.general_plugins", "doctor", "the group of our entry point"),
    calls("vllm.engine.arg_utils:EngineArgs.__post_init__", "load_general_plugins()", "engine.plugin",
          "the plugin is loaded before a configuration is built, in the module that is then loaded"),
    calls("vllm.v1.engine.core:EngineCore.__init__", "load_general_plugins()", "engine.orphans",
          "the plugin is loaded in the engine core, which is to end with its batch run"),
    calls("vllm.plugins:load_general_plugins", "func()", "engine.plugin", "the entry point is called bare"),
    exists("vllm:envs", "engine.plugin engine.admin", "what VLLM_PLUGINS leaves out; is there an API key"),
    exists("vllm.envs:VLLM_API_KEY", "engine.admin", "is there an API key"),
    exists("vllm.envs:VLLM_PLUGINS", "engine.plugin", "whether it leaves the plugin out"),
    calls("vllm.v1.spec_decode.custom_class_proposer:create_custom_proposer", "user_class(vllm_config)",
          "engine.proposer", "how the proposer is built"),
    calls(f"{of.RUNNER}.__init__", "create_custom_proposer(self.vllm_config)", "engine.proposer",
          "the drafter exists before the model is loaded"),
    calls(f"{of.RUNNER}.load_model", "self.drafter.load_model(self.model)", "engine.proposer",
          "the kernels are compiled before the first request"),
    calls(f"{of.RUNNER}.propose_draft_token_ids",
          "cast(Any, self.drafter).propose(sampled_token_ids, self.input_batch.num_tokens_no_spec, "
          "self.input_batch.token_ids_cpu, slot_mappings=slot_mappings)",
          "engine.proposer", "how drafts are asked for"),
    says("vllm.config.speculative", "custom_class ngram suffix standard",
         "engine.start generation.settings evaluation.bench_arms", "methods, and the rule that stays"),
    says("vllm.config:VllmConfig", "custom_class", "engine.plugin",
         "custom_class proposers get the V1 model runner, which is patched"),
)  # fmt: skip

# What patches rely on beside the function that they replace.
_PATCHES = (
    calls(f"{of.SAMPLER}.forward", "rejection_sample(...)", "engine.plugin",
          "found in the module when called, so that a replacement is"),
    calls(f"{_SAMPLER_MODULE}:rejection_sample", "generate_uniform_probs(...)", "engine.plugin",
          "asks for the random numbers that the relaxed rule has drawn"),
    calls(f"{_SAMPLER_MODULE}:apply_sampling_constraints", "expand_batch_to_tokens(...)", "engine.plugin",
          "the function that is replaced on CPU is the one called"),
    calls(f"{of.RUNNER}.sample_tokens", "self._sample(...)", "engine.plugin",
          "random numbers of unfinished prompts are taken back"),
    calls(f"{of.RUNNER}.sample_tokens", "self._bookkeeping_sync(...)", "engine.plugin",
          "as above, without set_offset"),
    calls(f"{of.RUNNER}.sample_tokens", "self._input_fits_in_drafter(...)", "engine.plugin",
          "the method that is replaced on the runner decides whether drafts are asked for"),
    calls("vllm.v1.engine.input_processor:InputProcessor.process_inputs",
          "self._validate_params(params, supported_tasks)", "engine.plugin", "every request is checked"),
    has("vllm.v1.engine.input_processor:InputProcessor", "vllm_config", "engine.plugin",
        "the settings that a request is checked against"),
    calls("vllm.entrypoints.serve.instrumentator.metrics:attach_router", "get_prometheus_registry()",
          "engine.plugin", "found in the module when called"),
    calls(f"{_OUTPUT_PROCESSOR}:OutputProcessor.process_outputs", "req_state.make_request_output(...)",
          "engine.request_meters", "every output passes the patch that takes the meters out"),
    calls("vllm.entrypoints.generate.base.serving:build_spec_decoding_metrics", "metrics.to_dict()",
          "engine.request_meters", "the server's answers show what it returns"),
    says("vllm.entrypoints.generate.base.protocol:OpenAIBaseModel", "allow", "engine.request_meters",
         "an answer may have fields of ours"),
    calls("vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_sampling_params",
          "SamplingParams.from_optional(..., extra_args=extra_args or None)", "engine.plugin",
          "vllm_xargs come by this name, for completions"),
    calls("vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_sampling_params",
          "SamplingParams.from_optional(..., extra_args=extra_args or None)", "engine.plugin",
          "and for chats"),
    takes("vllm.exceptions:VLLMValidationError.__init__", "message parameter", "engine.start",
          "a refused request names its key"),
    has(of.RUNNER, "discard_request_mask input_batch vllm_config _input_fits_in_drafter drafter",
        "engine.plugin engine.learning_worker evaluation.bench_worker",
        "reached from the patches, and by the methods that a batch run adds to the worker"),
    has(of.BUFFER, "np", "engine.plugin engine.proposer", "the host's copy of the runner's buffers"),
    has(of.INPUT_BATCH, "generators", "engine.plugin", "seeds of unfinished prompts"),
    exists("vllm.platforms:current_platform", "engine.plugin evaluation.bench_worker", "is it a CPU"),
    has(of.PLATFORM, "is_cpu get_device_name", "engine.plugin evaluation.bench_worker", "is it a CPU"),
    exists("vllm.v1.sample:rejection_sampler", "engine.plugin", "the patched module"),
    matches(f"{_SAMPLER_MODULE}:generate_uniform_probs", "num_tokens num_draft_tokens generators device",
            "verification.sampler", "called by position"),
    matches(f"{_SAMPLER_MODULE}:expand_batch_to_tokens",
            "x cu_num_tokens num_tokens replace_from replace_to", "engine.plugin", "replaced on CPU"),
)  # fmt: skip

_CONFIGURATION = (
    exists(of.CONFIG, "engine.proposer", "what a proposer is built with"),
    has(of.CONFIG, "additional_config model_config observability_config parallel_config scheduler_config "
        "speculative_config",
        "engine.admin engine.configured engine.proposer engine.request_meters engine.spans engine.start "
        "evaluation.target_score generation.runner",
        "our settings, and the engine's that they must fit"),
    has(of.SPECULATIVE, "method model num_speculative_tokens rejection_sample_method",
        "engine.configured engine.proposer engine.start", "is it ours, and does it fit"),
    has(of.PARALLEL, "data_parallel_index distributed_executor_backend pipeline_parallel_size "
        "tensor_parallel_size", "engine.proposer engine.start", "who drafts, and what cannot work"),
    has(of.PARALLEL, "_api_process_count _api_process_rank", "engine.start",
        "one of several API servers says what is on"),
    has(of.MODEL_CONFIG, "tokenizer get_vocab_size max_model_len",
        "engine.admin engine.proposer engine.start evaluation.target_score",
        "the pool must be of this tokenizer"),
    has(of.SCHEDULER_CONFIG, "scheduler_cls max_num_seqs", "engine.request_meters generation.runner",
        "our scheduler carries what relaxing did; how many rows fill the engine"),
    has(of.OBSERVABILITY, "per_request_spec_decode_metrics", "engine.request_meters",
        "whether requests return draft metrics"),
    has(of.OBSERVABILITY, "otlp_traces_endpoint", "engine.spans", "whether vLLM makes spans"),
    has("vllm.engine.arg_utils:EngineArgs",
        "model max_num_seqs max_model_len dtype disable_log_stats speculative_config additional_config "
        "per_request_spec_decode_metrics worker_extension_cls",
        "generation.settings evaluation.bench_arms", "how a batch run starts its engine"),
    has("vllm.config:SpeculativeConfig", "suffix_decoding_max_cached_requests", "evaluation.bench_arms",
        "room for the pool's texts in vLLM's suffix decoding"),
    exists("vllm.logger:init_logger", "engine.learning engine.proposer engine.shared_pool engine.start",
           "logging as vLLM"),
    exists("vllm:__version__", "engine.start", "for the refusal"),
    exists("vllm:__version_tuple__", "engine.start", "is it supported"),
    exists(f"{_SAMPLER_MODULE}:MAX_SPEC_LEN", "engine.start evaluation.bench_arms", "the longest draft"),
    exists("vllm.exceptions:VLLMValidationError", "engine.start", "a bad request is HTTP 400"),
    exists("vllm.tokenizers:cached_tokenizer_from_config", "engine.proposer engine.start",
           "the model's tokenizer"),
    has(of.TOKENIZER, "get_vocab decode encode __len__", "engine.proposer engine.start",
        "fingerprint of the vocabulary, and text of its tokens"),
)  # fmt: skip

_WORKER = (
    exists("vllm.distributed.parallel_state:get_tp_group", "engine.proposer", "who drafts"),
    has("vllm.distributed.parallel_state:GroupCoordinator", "rank_in_group", "engine.proposer", "who drafts"),
    has(of.RUNNER, "input_batch max_model_len parallel_config query_start_loc rejection_sampler requests",
        "engine.proposer", "whose drafts these are, how long they may be, what was scheduled"),
    has(of.INPUT_BATCH, "req_ids num_tokens_no_spec token_ids_cpu", "engine.proposer",
        "the requests of the batch and their text"),
    has(of.CACHED_REQUEST, "sampling_params prompt_token_ids output_token_ids",
        "engine.proposer engine.learning", "a request's text, and what it asks for"),
    has(of.PARAMS, "extra_args all_stop_token_ids max_tokens min_tokens temperature seed stop_token_ids "
        "ignore_eos",
        "engine.proposer engine.start engine.learning", "what a request asks for"),
    has("vllm.v1.outputs:ModelRunnerOutput", "req_ids", "engine.proposer",
        "the step's output, which takes an attribute of ours"),
    exists("vllm.v1.outputs:SamplerOutput", "verification.sampler", "for types"),
    exists(of.SAMPLING_METADATA, "verification.sampler", "for types"),
    has(of.SAMPLING_METADATA, "all_greedy generators temperature top_k top_p", "verification.sampler",
        "how each request samples"),
    exists(of.SPEC_METADATA, "verification.sampler", "for types"),
    has(of.SPEC_METADATA, "bonus_logits_indices draft_token_ids num_draft_tokens", "verification.sampler",
        "what is verified"),
    exists(of.SAMPLER, "verification.sampler", "the base of ours"),
    has(of.SAMPLER, "sampler", "verification.sampler", "a step without any draft is sampled"),
    matches(f"{of.SAMPLER}.forward", "self metadata draft_probs logits sampling_metadata",
            "verification.sampler", "overridden"),
    calls(f"{of.RUNNER}._sample",
          "self.rejection_sampler(spec_decode_metadata, draft_probs, logits, sampling_metadata)",
          "verification.sampler", "how it is called"),
    has("vllm.v1.worker.gpu_worker:Worker", "model_runner", "engine.learning_worker evaluation.bench_worker",
        "reached by the methods that a batch run adds to the worker"),
    has("vllm.v1.worker.cpu_worker:CPUWorker", "model_runner", "engine.learning_worker",
        "as above"),
    has(of.RUNNER, "execute_model sample_tokens", "evaluation.bench_worker", "timed by a bench"),
    has("vllm.v1.spec_decode.suffix_decoding:SuffixDecodingProposer", "suffix_cache propose",
        "evaluation.bench_worker", "a bench gives vLLM's suffix decoding the pool's texts"),
)  # fmt: skip

_SCHEDULER = (
    exists("vllm.v1.core.sched.scheduler:Scheduler", "engine.scheduler", "the base of ours"),
    matches("vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
            "self scheduler_output model_runner_output", "engine.scheduler", "overridden"),
    has("vllm.v1.core.sched.scheduler:Scheduler", "requests", "engine.scheduler", "which requests go on"),
    has("vllm.v1.core.sched.scheduler:Scheduler", "vllm_config spec_decode_metrics_level", "engine.scheduler",
        "drafts are counted for spans, too"),
    calls("vllm.v1.core.sched.scheduler:Scheduler.add_request",
          "RequestSpecDecodeMetrics.new(self.num_spec_tokens)", "engine.scheduler",
          "the level that the scheduler has is the one that counts"),
    has("vllm.v1.request:Request", "spec_decode_metrics", "engine.scheduler", "what is counted"),
    has("vllm.v1.metrics.stats:RequestSpecDecodeMetrics", "histogram num_draft_tokens", "engine.spans",
        "what is counted"),
    has(of.OUTPUT, "finish_reason kv_transfer_params request_id spec_decode_metrics",
        "engine.scheduler engine.spans", "the field that carries what relaxing did"),
    calls(f"{_OUTPUT_PROCESSOR}:OutputProcessor.process_outputs",
          "self.do_tracing(engine_core_output, req_state, iteration_stats)", "engine.spans",
          "the span is made while the request's output is at hand"),
    calls(f"{_OUTPUT_PROCESSOR}:OutputProcessor.do_tracing",
          "instrument_manual(..., attributes=attributes)", "engine.spans",
          "found in the module when called"),
    has("vllm.v1.engine:EngineCoreOutputs", "outputs", "engine.scheduler", "the outputs of a step"),
    has(of.REQUEST_STATE, "spec_decode_metrics", "engine.request_meters", "where the meters are put"),
)  # fmt: skip

_ADMIN = (
    says("vllm.plugins", "vllm.endpoint_plugins", "engine.admin", "the group of its entry point"),
    calls("vllm.plugins.endpoint_plugins.interface:attach_endpoint_plugins", "plugin.attach_router(app)",
          "engine.admin", "the routes are registered"),
    calls("vllm.plugins.endpoint_plugins.interface:init_endpoint_plugins_state",
          "plugin.init_state(engine_client, state, args)", "engine.admin",
          "the routes come to know their server"),
    says("vllm.entrypoints.serve.middleware.authenticate", "/v1", "engine.admin",
         "paths that need the API key"),
    has("vllm.engine.protocol:EngineClient", "vllm_config", "engine.admin", "the server's settings"),
)  # fmt: skip

_BATCH_RUN = (
    exists(of.LLM, "generation.engine", "the engine of a batch run"),
    has(of.LLM, "collective_rpc enqueue enqueue_chat generate get_metrics get_tokenizer llm_engine "
        "reset_prefix_cache",
        "evaluation.bench_child evaluation.even_start evaluation.target_score generation.engine "
        "generation.learned generation.meter generation.runner generation.watch", "drives it"),
    takes(f"{of.LLM}.enqueue", "prompts sampling_params use_tqdm", "generation.runner", "called so"),
    takes(f"{of.LLM}.enqueue_chat", "messages sampling_params use_tqdm", "generation.runner", "called so"),
    takes(f"{of.LLM}.generate", "prompts sampling_params use_tqdm", "generation.engine", "called so"),
    takes(f"{of.LLM}.collective_rpc", "method args", "generation.learned evaluation.bench_child",
          "called so"),
    exists(of.PARAMS, "generation.runner", "of a row"),
    exists("vllm:SamplingParams", "generation.engine evaluation.target_score", "of a row"),
    has(of.PARAMS, "max_tokens temperature top_p top_k seed extra_args ignore_eos prompt_logprobs",
        "generation.runner generation.engine evaluation.target_score", "built with these"),
    has(of.LLM_ENGINE, "engine_core step vllm_config",
        "evaluation.target_score generation.engine generation.runner generation.watch", "drives it"),
    has(of.CORE_CLIENT, "outputs_queue resources shutdown utility_results",
        "generation.engine generation.watch", "stops it, and notices that it was killed"),
    has("vllm.v1.engine.core_client:BackgroundResources", "engine_dead", "generation.watch",
        "notices that it was killed"),
    exists("vllm.v1.engine.exceptions:EngineDeadError", "generation.runner", "the engine has died"),
    exists("vllm.exceptions:VLLMClientError", "generation.runner", "the row is at fault"),
    has(of.REQUEST_OUTPUT, "finished outputs prompt_logprobs prompt_token_ids request_id",
        "evaluation.target_score generation.runner", "what a row became"),
    has(of.COMPLETION, "finish_reason spec_decode_metrics text token_ids", "generation.runner",
        "what a row became"),
    has("vllm.logprobs:Logprob", "logprob", "evaluation.target_score", "how probable a text is"),
    has("vllm.v1.metrics.reader:Counter", "name value", "generation.meter", "vLLM's counters"),
    has("vllm.v1.metrics.reader:Histogram", "name count", "generation.meter", "vLLM's counters"),
    says("vllm.v1.metrics.loggers",
         "vllm:generation_tokens vllm:time_to_first_token_seconds vllm:inter_token_latency_seconds",
         "generation.meter", "the counters that figures are made of"),
    says("vllm.v1.spec_decode.metrics",
         "vllm:spec_decode_num_draft_tokens vllm:spec_decode_num_accepted_tokens",
         "generation.meter", "the counters that figures are made of"),
)  # fmt: skip


def seams() -> tuple[Seam, ...]:
    """The whole ledger."""
    return (*patched(), *_LOADING, *_PATCHES, *_CONFIGURATION, *_WORKER, *_SCHEDULER, *_ADMIN, *_BATCH_RUN)
