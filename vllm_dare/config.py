"""The settings under ``additional_config["dare"]``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from vllm_dare.errors import ConfigError
from vllm_dare.store.location import read_location
from vllm_dare.verification.rule import RuleLimits, VerificationConfig


class LiveConfig(BaseModel):
    """Learning while serving: what the engine writes drafts for later requests, kept in ``<pool>/live``.

    Attributes:
        max_tokens: the most tokens kept, on disk and in memory together; beyond it the segments that were
            written the longest ago are dropped. A token that is in a group's text and in everybody's counts
            once.
        learn_relaxed: whether text of relaxed requests is learned too. Drafts from such text pull what is
            written further and further from the model's own wording.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(default=2**22, ge=2**12)
    learn_relaxed: bool = False


class DareConfig(BaseModel):
    """What an operator may set, in ``additional_config={"dare": {...}}``.

    Attributes:
        pool: the pool directory, or the URL of a store, see `vllm_dare.store`; None drafts from each
            request's own text alone.
        verification: see `VerificationConfig`; strict by default, which changes no output.
        allow_override: whether a request may choose its own rule (``dare_verification``, ``dare_preset`` and
            the bounds).
        allow_groups: whether a request may say whose text drafts (``dare_group``, ``dare_user`` and the
            like). Who may name a group can learn by timing what text is in it.
        limits: the loosest rule that a request may choose, see `RuleLimits`.
        verify_pool: whether start-up reads every segment and compares its checksum (about a second per GB).
            What comes from a store is checked when it is fetched, and then not again.
        live: see `LiveConfig`; None, the default, learns nothing. Needs a pool, which may still be missing.
        draft_budget: "auto" sends the drafts that pay at the engine's load, see
            `vllm_dare.drafting.budget`; "fixed" sends all there are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: Annotated[Path | str | None, PlainValidator(read_location)] = None
    verification: VerificationConfig = VerificationConfig()
    allow_override: bool = True
    allow_groups: bool = True
    limits: RuleLimits = RuleLimits()
    verify_pool: bool = True
    live: LiveConfig | None = None
    draft_budget: Literal["auto", "fixed"] = "auto"

    @classmethod
    def from_additional_config(cls, additional_config: Any) -> "DareConfig":
        """Read ``additional_config["dare"]``; absent means all defaults.

        Raises:
            ConfigError: an unknown setting or a bad value, named in the message.
        """
        settings = additional_config.get("dare", {}) if isinstance(additional_config, Mapping) else {}
        if not isinstance(settings, Mapping):
            raise ConfigError(
                f"additional_config['dare'] must be a dictionary of settings, not {settings!r}."
            )
        try:
            config = cls.model_validate(dict(settings))
        except ValidationError as error:
            raise ConfigError(_one_sentence(error)) from None
        if config.live is not None and config.pool is None:
            raise ConfigError(
                "The setting dare.live needs dare.pool, the directory to learn into: set it (it is made if "
                "it does not exist), or leave dare.live out."
            )
        return config


def _one_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(["dare", *map(str, first["loc"])])
    if first["type"] == "extra_forbidden":
        return f"Unknown setting {name}; known settings are {_known_settings(first['loc'][:-1])}."
    message = first["msg"].removeprefix("Value error, ")
    return f"Bad value {first['input']!r} for the setting {name}: {message}."


def _known_settings(parents: tuple[int | str, ...]) -> str:
    nested: dict[tuple[int | str, ...], type[BaseModel]] = {
        ("verification",): VerificationConfig,
        ("limits",): RuleLimits,
        ("live",): LiveConfig,
    }
    model = nested.get(parents, DareConfig)
    return ", ".join(model.model_fields)
