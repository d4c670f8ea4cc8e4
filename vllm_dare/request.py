"""The `dare_*` keys of one request: `SamplingParams.extra_args` offline, `vllm_xargs` on the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vllm_dare.config import DareConfig, VerificationConfig
from vllm_dare.errors import RequestError

PREFIX = "dare_"
_GROUP_KEYS = ("dare_group", "dare_user", "dare_item")
# Request key -> field of VerificationConfig; what the operator may forbid with allow_override=False.
_RULE_KEYS = {
    "dare_verification": "mode",
    "dare_top_k": "top_k",
    "dare_min_prob": "min_prob",
    "dare_min_ratio": "min_ratio",
}
KNOWN_KEYS = (*_GROUP_KEYS, *_RULE_KEYS)


@dataclass(frozen=True)
class RequestOptions:
    """What one request asks for, validated and completed by the operator's defaults.

    Attributes:
        group: the group whose segment drafts, named explicitly.
        user, item: ids that the pool's assignments turn into a group when none is named.
        verification: the acceptance rule of this request.
    """

    group: str | None
    user: str | None
    item: str | None
    verification: VerificationConfig

    @classmethod
    def parse(cls, extra_args: Mapping[str, Any] | None, config: DareConfig) -> "RequestOptions":
        """Read a request's `dare_*` keys; other keys are none of ours and ignored.

        Raises:
            RequestError: an unknown key, a bad value, or an override that the operator does not allow.
        """
        given = {key: value for key, value in (extra_args or {}).items() if key.startswith(PREFIX)}
        for key in given:
            if key not in KNOWN_KEYS:
                raise RequestError(key, f"Unknown request key {key}; known keys are {', '.join(KNOWN_KEYS)}.")
        rule = {field: given[key] for key, field in _RULE_KEYS.items() if key in given}
        if rule and not config.allow_override:
            key = next(key for key in _RULE_KEYS if key in given)
            raise RequestError(
                key,
                f"The operator of this engine does not let requests set {key}: leave it out.",
            )
        return cls(
            group=_identifier("dare_group", given.get("dare_group")),
            user=_identifier("dare_user", given.get("dare_user")),
            item=_identifier("dare_item", given.get("dare_item")),
            verification=_override(config.verification, rule) if rule else config.verification,
        )


def request_args(
    *,
    group: str | int | None = None,
    user: str | int | None = None,
    item: str | int | None = None,
    verification: str | None = None,
    top_k: int | None = None,
    min_prob: float | None = None,
    min_ratio: float | None = None,
) -> dict[str, Any]:
    """Build a request's metadata for `SamplingParams(extra_args=...)` or the server's `vllm_xargs`.

    Args:
        group: the group whose text drafts for this request.
        user, item: an id to look up in the pool's assignments; used when no group is given.
        verification: "strict" or "relaxed", instead of the engine's default.
        top_k, min_prob, min_ratio: the relaxed rule's bounds, see `VerificationConfig`.

    Returns:
        A flat dictionary of the keys that were given.

    Raises:
        RequestError: a value that no engine would accept.
    """
    values = (group, user, item, verification, top_k, min_prob, min_ratio)
    given = {key: value for key, value in zip(KNOWN_KEYS, values, strict=True) if value is not None}
    RequestOptions.parse(given, DareConfig())
    return given


def _identifier(key: str, value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or (isinstance(value, str) and value):
        return value
    raise RequestError(key, f"{key} must be a non-empty string or an integer, not {value!r}.")


def _override(default: VerificationConfig, rule: dict[str, Any]) -> VerificationConfig:
    try:
        return VerificationConfig.model_validate({**default.model_dump(), **rule}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = next(key for key, field in _RULE_KEYS.items() if field == first["loc"][0])
        raise RequestError(key, f"Bad value {first['input']!r} for {key}: {first['msg']}.") from None
