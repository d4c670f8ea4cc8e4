"""The `dare_*` keys of one request: `SamplingParams.extra_args` offline, `vllm_xargs` on the server."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vllm_dare.config import DareConfig
from vllm_dare.errors import RequestError
from vllm_dare.names import MAX_CHARACTERS, is_name
from vllm_dare.routing.query import Query
from vllm_dare.shown import shown, shown_name
from vllm_dare.verification.rule import VerificationConfig

PREFIX = "dare_"
_MAX_VALUES = 1000  # of a history, and of attributes
# Of a list of the rule: entries, and strings, each of which is looked for in every token's text.
_MAX_GUARDED, _MAX_GUARDED_TEXTS = 10_000, 100
_AN_ID = f"a non-empty string or an integer (of at most {MAX_CHARACTERS} characters but NUL, or 64 bits)"
_GROUP_KEYS = ("dare_group", "dare_user", "dare_item", "dare_history", "dare_attributes")
# Request key -> field of VerificationConfig; what the operator may forbid with allow_override=False, or bound
# with limits.
_RULE_KEYS = {
    "dare_verification": "mode",
    "dare_preset": "preset",
    **{
        f"dare_{field}": field
        for field in (
            "top_k",
            "min_prob",
            "min_ratio",
            "min_entropy",
            "window",
            "max_relaxed",
            "max_relaxed_per_100",
            "max_relaxed_in_row",
            "never_relax",
            "protect",
        )
    },
}
KNOWN_KEYS = (*_GROUP_KEYS, *_RULE_KEYS)
# For checks without knowing the engine: bounds alone make sense where its default is relaxed.
ANY_ENGINE = DareConfig(verification=VerificationConfig(mode="relaxed"))


@dataclass(frozen=True)
class RequestOptions:
    """What one request asks for, validated and completed by the operator's defaults.

    Attributes:
        query: what says whose text drafts.
        verification: the acceptance rule of this request.
    """

    query: Query
    verification: VerificationConfig

    @classmethod
    def parse(cls, extra_args: Mapping[str, Any] | None, config: DareConfig) -> "RequestOptions":
        """Read a request's `dare_*` keys; other keys are none of ours and ignored.

        Raises:
            RequestError: an unknown key, a bad value, or an override that the operator does not allow.
        """
        given = _own_keys(extra_args)
        for key in given:
            if key not in KNOWN_KEYS:
                name = shown_name(key)
                raise RequestError(
                    name, f"Unknown request key {name}; known keys are {', '.join(KNOWN_KEYS)}."
                )
            if key in _GROUP_KEYS and not config.allow_groups:
                raise RequestError(
                    key, f"The operator of this engine does not let requests set {key}: leave it out."
                )
        rule = {key: given[key] for key in _RULE_KEYS if key in given}
        return cls(
            query=Query(
                group=_identifier("dare_group", given.get("dare_group")),
                user=_identifier("dare_user", given.get("dare_user")),
                item=_identifier("dare_item", given.get("dare_item")),
                history=_history("dare_history", given.get("dare_history")),
                attributes=_attributes("dare_attributes", given.get("dare_attributes")),
            ),
            verification=_override(config, rule) if rule else config.verification,
        )


def request_args(
    *,
    group: str | int | None = None,
    user: str | int | None = None,
    item: str | int | None = None,
    history: Sequence[str | int] | None = None,
    attributes: Mapping[str, str | int | Sequence[str | int]] | None = None,
    verification: str | None = None,
    preset: str | None = None,
    **bounds: Any,
) -> dict[str, Any]:
    """Build a request's metadata for `SamplingParams(extra_args=...)` or the server's `vllm_xargs`.

    Args:
        group: the group whose text drafts for this request.
        user, item: an id to look up in the pool's assignments; used when no group is given.
        history: ids of at most 1000 items that the user dealt with, from which the pool's router tells the
            group where the assignments do not.
        attributes: name to value or values, at most 1000, of the user or of the item; from these the router
            tells the group where all else does not. They go as a list of ``"name=value"``, because the
            server takes no dictionaries.
        verification: "strict" or "relaxed", instead of the engine's default.
        preset: the relaxed rule to begin with, see `vllm_dare.verification.rule.PRESETS`.
        bounds: bounds of the relaxed rule by the names that `VerificationConfig` gives them: ``top_k``,
            ``min_prob``, ``min_ratio``, ``min_entropy``, ``window``, ``max_relaxed``,
            ``max_relaxed_per_100``, ``max_relaxed_in_row``, ``never_relax`` and ``protect``.

    Returns:
        A flat dictionary of the keys that were given.

    Raises:
        RequestError: a bound that does not exist, or a value that no engine would accept.
    """
    named = {
        "dare_group": group,
        "dare_user": user,
        "dare_item": item,
        # The server takes neither tuples nor dictionaries.
        "dare_history": list(history)
        if isinstance(history, Sequence | Set) and not _is_text(history)
        else history,
        "dare_attributes": _flat(attributes) if isinstance(attributes, Mapping) else attributes,
        "dare_verification": verification,
        "dare_preset": preset,
        **{f"{PREFIX}{name}": value for name, value in bounds.items()},
    }
    given = {key: value for key, value in named.items() if value is not None}
    RequestOptions.parse(given, ANY_ENGINE)
    return given


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def _own_keys(extra_args: Any) -> dict[str, Any]:
    """The `dare_*` keys of a request; there may be none."""
    if extra_args is None:
        return {}
    if not isinstance(extra_args, Mapping):
        raise RequestError("extra_args", f"extra_args must be a dictionary, not {shown(extra_args)}.")
    return {
        key: value for key, value in extra_args.items() if isinstance(key, str) and key.startswith(PREFIX)
    }


def _identifier(key: str, value: Any) -> str | None:
    text = _as_id(value)
    if text is None and value is not None:
        raise RequestError(key, f"{key} must be {_AN_ID}, not {shown(value)}.")
    return text


def _as_id(value: Any) -> str | None:
    """An id, a name or the like as text; None if it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if -(2**63) <= value < 2**63 else None
    return value if isinstance(value, str) and is_name(value) else None


def _history(key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > _MAX_VALUES:
        raise RequestError(key, f"{key} must be a list of at most {_MAX_VALUES} ids, not {shown(value)}.")
    return tuple(_part(key, "an id", part) for part in value)


def _attributes(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    """The (name, value) pairs of a dictionary, or of a list of "name=value"."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = _flat(value)
    if not isinstance(value, list | tuple) or len(value) > _MAX_VALUES:
        raise RequestError(
            key,
            f"{key} must be a dictionary, or a list of 'name=value', of at most {_MAX_VALUES} values, not "
            f"{shown(value)}.",
        )
    pairs = tuple(
        part.partition("=") if isinstance(part, str) and _as_id(part) else ("", "", "") for part in value
    )
    for part, (name, _, text) in zip(value, pairs, strict=True):
        if not name or not text:
            raise RequestError(
                key,
                f"{key} holds {shown(part)}, which is not of the form 'name=value' (of at most "
                f"{MAX_CHARACTERS} characters).",
            )
    return tuple((name, text) for name, _, text in pairs)


def _flat(attributes: Mapping[str, Any]) -> list[str]:
    """Attributes as a list of "name=value"; a value that is None is not known."""
    key = "dare_attributes"
    flat = []
    for name, values in attributes.items():
        if not isinstance(name, str) or not name or "=" in name:
            raise RequestError(key, f"{key} has the name {shown(name)}; a name is a text without '='.")
        for value in values if isinstance(values, list | tuple) else [values]:
            if value is not None:
                flat.append(f"{name}={_part(key, shown(name), value)}")
    return flat


def _part(key: str, what: str, value: Any) -> str:
    text = _as_id(value)
    if text is None:
        raise RequestError(key, f"{key}: {what} must be {_AN_ID}, not {shown(value)}.")
    return text


def _override(config: DareConfig, given: Mapping[str, Any]) -> VerificationConfig:
    """The operator's rule, or the preset that the request names, with what else the request says.

    Args:
        given: the request's rule keys and their values, at least one.
    """
    if not config.allow_override:
        key = next(iter(given))
        raise RequestError(key, f"The operator of this engine does not let requests set {key}: leave it out.")
    fields = {_RULE_KEYS[key]: _as_field(key, value) for key, value in given.items()}
    base = {} if "preset" in fields else config.verification.model_dump()
    try:
        rule = VerificationConfig.model_validate({**base, **fields}, strict=True)
    except ValidationError as error:
        raise _bad_value(error) from None
    _check_is_relaxed(rule, given)
    return _within_limits(config, rule, given)


def _as_field(key: str, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if len(value) > _MAX_GUARDED:
        raise RequestError(key, f"{key} must be a list of at most {_MAX_GUARDED} entries, not {len(value)}.")
    texts = sum(isinstance(entry, str) for entry in value)
    if texts > _MAX_GUARDED_TEXTS:
        raise RequestError(key, f"{key} must hold at most {_MAX_GUARDED_TEXTS} strings, not {texts}.")
    for entry in value:
        if isinstance(entry, str) and entry and _as_id(entry) is None:
            raise RequestError(
                key,
                f"{key} holds {shown(entry)}, which is not Unicode of at most {MAX_CHARACTERS} characters.",
            )
    return tuple(value)


def _bad_value(error: ValidationError) -> RequestError:
    first = error.errors()[0]
    key = next(key for key, field in _RULE_KEYS.items() if field == first["loc"][0])
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    return RequestError(key, f"Bad value {shown(first['input'])} for {key}: {message}.")


def _check_is_relaxed(rule: VerificationConfig, given: Mapping[str, Any]) -> None:
    """Bounds of relaxing say nothing where nothing is relaxed: the client meant something else."""
    key = next((key for key in given if key != "dare_verification"), None)
    if rule.relaxes or key is None:
        return
    if "dare_verification" in given:
        raise RequestError(key, f"{key} and dare_verification 'strict' contradict each other: leave out one.")
    raise RequestError(
        key,
        f"{key} is about relaxed verification, but this engine verifies strictly unless asked: add "
        "dare_verification 'relaxed' or a dare_preset, or leave it out.",
    )


def _within_limits(
    config: DareConfig, rule: VerificationConfig, given: Mapping[str, Any]
) -> VerificationConfig:
    """Refuse what the request itself asks beyond the operator's limits, and tighten the rest to them."""
    limits = config.limits
    if limits.presets is not None and "dare_preset" in given and rule.preset not in limits.presets:
        raise RequestError(
            "dare_preset",
            f"The operator of this engine allows the presets {', '.join(limits.presets) or '(none)'}, not "
            f"{rule.preset!r}, as dare_preset.",
        )
    for field in limits.exceeded(rule):
        key = f"{PREFIX}{field}"
        if key in given:
            raise RequestError(
                key,
                f"{key} {given[key]} is beyond the limit that the operator of this engine sets, "
                f"{getattr(limits, field)}.",
            )
        rule = rule.model_copy(update={field: getattr(limits, field)})
    return rule
