"""What one batch run is asked to do."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vllm_dare.errors import ConfigError
from vllm_dare.verification.rule import DEFAULT_PRESET, PRESETS

Verification = Literal["strict", "relaxed"]

_OWN_ENGINE_ARGS = ("model", "speculative_config", "additional_config", "disable_log_stats")


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen; the same meaning as in vLLM's ``SamplingParams``.

    Attributes:
        max_tokens: the most tokens one row may get; a row's own ``max_tokens`` goes before it.
        temperature: 0 is greedy.
        top_p: 1 is off.
        top_k: 0 is off.
        seed: with a seed, every row's random numbers depend on the seed and the row's id alone.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class EngineSettings:
    """The engine to start.

    Attributes:
        model: a model directory or a name that vLLM can load.
        pool: the pool directory, or the URL of a store; None drafts from each row's own text alone.
        verification: ``strict`` changes no output, ``relaxed`` keeps near-miss draft tokens.
        draft_tokens: the most draft tokens a step; 0 is plain vLLM without drafts.
        learn: whether what is written drafts for later rows and runs; needs drafts and a pool, which may
            still be missing.
        preset: the relaxed rule, a name in `vllm_dare.verification.rule.PRESETS`; None is the default one.
        max_num_seqs, max_model_len, dtype: as in vLLM; None leaves vLLM's default.
        engine_args: further arguments of ``vllm.LLM``.
    """

    model: str
    pool: Path | str | None = None
    verification: Verification = "strict"
    draft_tokens: int = 16
    learn: bool = False
    preset: str | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    dtype: str | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*_OWN_ENGINE_ARGS, *(("worker_extension_cls",) if self.learn else ())):
            if name in self.engine_args:
                raise ConfigError(f"--engine-args may not contain {name!r}: vllm-dare sets it itself.")
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(
                f"There is no preset {self.preset!r} for --preset; there are {', '.join(PRESETS)}."
            )
        if self.preset is not None and self.verification == "strict":
            raise ConfigError("--preset needs --verification relaxed: strict verification has no presets.")
        if self.learn and self.pool is None:
            raise ConfigError(
                "--learn needs --pool DIR, where the text is kept; DIR is made if it is missing."
            )
        if self.learn and not self.draft_tokens:
            raise ConfigError("--learn and --no-drafts exclude each other: leave out one of them.")

    def llm_args(self) -> dict[str, Any]:
        """The keyword arguments of ``vllm.LLM``."""
        named = {name: getattr(self, name) for name in ("max_num_seqs", "max_model_len", "dtype")}
        arguments: dict[str, Any] = {
            "model": self.model,
            "disable_log_stats": False,  # the figures of a run come from vLLM's own counters
            **{name: value for name, value in named.items() if value is not None},
            **self.engine_args,
        }
        if self.draft_tokens:
            arguments["speculative_config"] = {
                "method": "custom_class",
                "model": "vllm_dare.DareProposer",
                "num_speculative_tokens": self.draft_tokens,
            }
            arguments["additional_config"] = {"dare": self._dare_config()}
            arguments["per_request_spec_decode_metrics"] = "summary"  # with what relaxing did
        if self.learn:
            arguments["worker_extension_cls"] = "vllm_dare.engine.learning_worker.LearningWorker"
        return arguments

    def _dare_config(self) -> dict[str, Any]:
        verification: dict[str, str] = {"mode": self.verification}
        if self.preset is not None:
            verification["preset"] = self.preset
        config: dict[str, Any] = {"verification": verification}
        if self.pool is not None:
            config["pool"] = self.pool if isinstance(self.pool, str) else str(self.pool.resolve())
        if self.learn:
            config["live"] = {}
        return config


def text_settings(engine: EngineSettings, sampling: SamplingSettings, token_ids: bool) -> dict[str, Any]:
    """The settings that decide what is written: a part file may only be continued with the same ones.

    Drafts change the text in relaxed verification only, so that a strict run may go on with a newer pool, or
    begin to learn.
    """
    settings: dict[str, Any] = {
        "model": engine.model,
        "verification": engine.verification if engine.draft_tokens else "strict",
        "max_model_len": engine.max_model_len,
        "dtype": engine.dtype,
        "engine_args": dict(engine.engine_args),
        "token_ids": token_ids,
        **asdict(sampling),
    }
    if settings["verification"] == "relaxed":
        settings["pool"] = None if engine.pool is None else str(engine.pool)
        settings["draft_tokens"] = engine.draft_tokens
        settings["preset"] = engine.preset or DEFAULT_PRESET
        if engine.learn:
            settings["learn"] = True
    return settings
