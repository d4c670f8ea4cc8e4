"""Writes the reference pages from the code: `python docs/make_reference.py`.

Settings come from the pydantic models, commands from the typer application, metrics, patches and
names of vLLM from their tables. What the models do not say in a sentence of their own is in `MEANINGS`; a
setting without a meaning, or a meaning without a setting, is an error.
"""

import inspect
import json
import sys
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/make_reference.py. Do not edit. -->\n\n"

MEANINGS = {
    "pool": "pool directory, or the URL of a store; without one, drafts come from each request's own text",
    "allow_override": "whether requests may choose their own rule of verification",
    "allow_groups": "whether requests may say whose text drafts (`dare_group`, `dare_user` and the like)",
    "verify_pool": "whether start-up reads every segment and compares its checksum (about a second per GB); "
    "not what comes from a store",
    "draft_budget": "`auto` sends the drafts that pay at the engine's load, `fixed` all there are",
    "live": "learns while serving; absent, nothing is learned; `{}` learns with the defaults below",
    "live.max_tokens": "the most tokens kept, on disk and in memory together; the oldest go first",
    "live.learn_relaxed": "whether text of relaxed requests is learned, too",
    "verification.mode": "`strict` or `relaxed`; `relaxed` is implied by a preset",
    "verification.preset": "the rule to begin with, one of those below; what stands beside it goes before it",
    "verification.top_k": "a kept token ranks among so many most probable ones",
    "verification.min_prob": "its probability is more than this",
    "verification.min_ratio": "its probability is at least this share of the most probable token's",
    "verification.min_entropy": "the three most probable tokens have this entropy at least, in nats",
    "verification.window": "vLLM's own rule would accept the next so many drafts",
    "verification.max_relaxed": "the most relaxed tokens of a request",
    "verification.max_relaxed_per_100": "of the first n tokens, at most n / 100 times so many are relaxed",
    "verification.max_relaxed_in_row": "the most relaxed tokens one after the other",
    "verification.guard_stop_tokens": "neither the token nor the most probable one is a stop token",
    "verification.never_relax": "token ids and strings that are never relaxed",
    "verification.protect": "kinds of text that are never relaxed",
    "verification.wording_only": "not where the pool shows that the choice of token decides the content",
    "verification.drawn_drafts": "drafts are drawn from what the pool knows; else the likeliest are sent",
    "limits.presets": "the presets that requests may name",
    "limits.top_k": "the largest `dare_top_k`",
    "limits.min_prob": "the smallest `dare_min_prob`",
    "limits.min_ratio": "the smallest `dare_min_ratio`",
    "limits.max_relaxed": "the largest `dare_max_relaxed`",
    "limits.max_relaxed_per_100": "the largest `dare_max_relaxed_per_100`",
    "limits.max_relaxed_in_row": "the largest `dare_max_relaxed_in_row`",
}
GROUP_KEYS = {
    "dare_group": (
        "text or number",
        "the group whose text drafts; an unknown one drafts from the whole pool",
    ),
    "dare_user": ("text or number", "a user whose group the pool's assignments know"),
    "dare_item": ("text or number", "an item whose group they know"),
    "dare_history": ("list of ids", "items that the user dealt with: the pool's router finds the group"),
    "dare_attributes": ("list of `name=value`", "of the user or the item: the router finds the group"),
}


def pages() -> dict[str, str]:
    """Every reference page by its file name."""
    return {
        "settings.md": settings_page(),
        "commands.md": commands_page(),
        "metrics.md": metrics_page(),
        "patches.md": patches_page(),
        "upstream.md": upstream_page(),
    }


def settings_page() -> str:
    from vllm_dare.config import DareConfig

    rows = list(_settings(DareConfig))
    _check_meanings([name for name, _ in rows])
    return "\n".join(
        [
            NOTE + "# Settings and request keys\n",
            "## Settings of the engine\n",
            'In `additional_config={"dare": {...}}`, on the command line `--additional-config '
            '\'{"dare": {...}}\'`. A dot is a level: `live.max_tokens` is `{"live": {"max_tokens": ...}}`.\n',
            _table(
                ("setting", "values", "default", "meaning"),
                [(f"`{name}`", _values(field), _default(field), MEANINGS[name]) for name, field in rows],
            ),
            "`num_speculative_tokens` in vLLM's `speculative_config` is the longest draft, at most 128.\n",
            "## Presets of the relaxed rule\n",
            "What each sets; all else has its default.\n",
            _presets(),
            "## Keys of a request\n",
            "In `SamplingParams(extra_args=...)` and in the server's `vllm_xargs`; `vllm_dare.request_args` "
            "builds them. An unknown `dare_` key or a bad value is the request's error (HTTP 400).\n",
            _request_keys(),
        ]
    )


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting by its dotted name; a level that is no setting of its own is left out."""
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is None or field.default is None:
            yield f"{prefix}{name}", field
        if inner is not None:
            yield from _settings(inner, f"{prefix}{name}.")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    candidates = get_args(annotation) or (annotation,)
    models = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return models[0] if models else None


def _check_meanings(names: list[str]) -> None:
    missing, unknown = set(names) - MEANINGS.keys(), MEANINGS.keys() - set(names)
    if missing or unknown:
        raise ValueError(f"MEANINGS lacks {sorted(missing)} and knows {sorted(unknown)}, which do not exist.")


def _values(field: FieldInfo) -> str:
    if field.annotation is not None and (choices := _choices(field.annotation)):
        shown = ", ".join(f"`{choice}`" for choice in choices)
        return f"list of {shown}" if get_origin(field.annotation) is tuple else shown
    signs = {annotated_types.Ge: ("≥", "ge"), annotated_types.Gt: (">", "gt")}
    signs |= {annotated_types.Le: ("≤", "le"), annotated_types.Lt: ("<", "lt")}
    bounds = [
        f"{signs[type(bound)][0]} {getattr(bound, signs[type(bound)][1])}"
        for bound in field.metadata
        if type(bound) in signs
    ]
    return " ".join([_kind(field.annotation), ", ".join(bounds)]).strip()


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal, or of a list of them."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    inner = [part for part in get_args(annotation) if part is not Ellipsis]
    return _choices(inner[0]) if get_origin(annotation) is tuple and len(inner) == 1 else ()


def _kind(annotation: Any) -> str:
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_kind(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings"
    return {bool: "`true`, `false`", int: "number", float: "number", str: "text", Path: "path"}[annotation]


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "none"
    if value == ():
        return "`[]`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _presets() -> str:
    from vllm_dare.verification.rule import DEFAULT_PRESET, PRESETS

    rows = []
    for name, bounds in PRESETS.items():
        shown = ", ".join(f"`{bound}` {json.dumps(value)}" for bound, value in bounds.items())
        rows.append((f"`{name}`" + (" (the default)" if name == DEFAULT_PRESET else ""), shown))
    return _table(("preset", "bounds"), rows)


def _request_keys() -> str:
    from vllm_dare.request import KNOWN_KEYS
    from vllm_dare.verification.rule import VerificationConfig

    rows = []
    for key in KNOWN_KEYS:
        if key in GROUP_KEYS:
            values, meaning = GROUP_KEYS[key]
        else:
            name = {"dare_verification": "mode"}.get(key, key.removeprefix("dare_"))
            values = _values(VerificationConfig.model_fields[name])
            meaning = MEANINGS[f"verification.{name}"]
        rows.append((f"`{key}`", values, meaning))
    return _table(("key", "values", "meaning"), rows)


def commands_page() -> str:
    from vllm_dare.cli.app import app

    parts = [NOTE + "# Commands\n", "`vllm-dare COMMAND --help` says the same on a terminal.\n"]
    for path, function in _commands(app, "vllm-dare"):
        parts += [f"## {path}\n", inspect.cleandoc(function.__doc__ or "") + "\n", _parameters(function)]
    return "\n".join(parts)


def _commands(app: Any, path: str) -> Iterator[tuple[str, Any]]:
    for command in app.registered_commands:
        yield f"{path} {command.name or command.callback.__name__}", command.callback
    for group in app.registered_groups:
        yield from _commands(group.typer_instance, f"{path} {group.name}")


def _parameters(function: Any) -> str:
    hints = typing.get_type_hints(function, include_extras=True)
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])
        is_option = isinstance(info, OptionInfo)
        # In an annotation, typer reads the first name as the default, and sorts that out later.
        names = [part for part in (info.default, *(info.param_decls or ())) if str(part).startswith("--")]
        shown = (
            ", ".join(names or [f"--{name.replace('_', '-')}"]) if is_option else info.metavar or name.upper()
        )
        values = _parameter_values(kind, info, is_option)
        rows.append((f"`{shown}`", values, _parameter_default(parameter.default, kind, info), info.help))
    return _table(("option", "values", "default", "meaning"), rows)


def _parameter_values(kind: Any, info: Any, is_option: bool) -> str:
    inner = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) in (types.UnionType, typing.Union):
        return _parameter_values(inner[0], info, is_option)
    if get_origin(kind) is list:
        return f"{_parameter_values(inner[0], info, is_option)}, several"
    if kind is bool:
        return ""
    if issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    name = {str: "text", int: "number", float: "number", Path: "path"}[kind]
    low = "" if info.min is None else f" from {info.min:g}"
    high = "" if info.max is None else f" to {info.max:g}"
    return (info.metavar if info.metavar and is_option else name) + low + high


def _parameter_default(value: Any, kind: Any, info: Any) -> str:
    if value is inspect.Parameter.empty:
        return "needed"
    if isinstance(info.show_default, str):
        return str(info.show_default)
    return "" if value is None or kind is bool else f"`{getattr(value, 'value', value)}`"


def metrics_page() -> str:
    from vllm_dare.engine.metrics_file import METRICS

    suffixes = {"counter": "_total", "gauge": "", "histogram": ""}
    rows = []
    for metric in METRICS:
        values = ", ".join(f"`{value}`" for value in metric.values) if len(metric.values) < 10 else ""
        label = f"`{metric.label}`" + (f": {values}" if values else "") if metric.label else ""
        rows.append((f"`vllm_dare_{metric.name}{suffixes[metric.kind]}`", metric.kind, label, metric.help))
    return "\n".join(
        [
            NOTE + "# Metrics\n",
            "The server's `/metrics` shows these beside vLLM's own; each has the label `engine`, as vLLM's "
            "have (the number of the data-parallel engine). Counters begin at zero with the engine. Which "
            "alerts and panels there are is under [Operations](../operations.md).\n",
            _table(("name", "type", "further label", "what it counts"), rows),
            "A histogram `X` is there as `X_bucket`, `X_sum` and `X_count`. Upper bounds of the buckets: "
            + "; ".join(
                f"`{metric.name}` {', '.join(f'{bound:g}' for bound in metric.bounds)}"
                for metric in METRICS
                if metric.bounds
            )
            + ".\n",
            "Accepted tokens are those of vLLM's own `vllm:spec_decode_num_accepted_tokens_total`, and those "
            "of the last step of requests that were aborted in it, by a client or at a stop string, which "
            "vLLM leaves out, drafts and all. Its "
            "drafted ones may be more: a request whose prompt is in the prefix cache but for one token is "
            "padded with `num_speculative_tokens` placeholders, which vLLM counts as drafts.\n",
        ]
    )


def patches_page() -> str:
    from vllm_dare.engine import plugin

    rows = [
        (
            patch.name,
            f"`{patch.module}.{patch.qualname}`",
            "CPU" if patch in plugin._CPU_PATCHES else "all",
            patch.why,
            patch.until,
        )
        for patch in vars(plugin).values()
        if isinstance(patch, plugin.Patch)
    ]
    return "\n".join(
        [
            NOTE + "# What is patched in vLLM\n",
            "`vllm-dare doctor` says for each whether it fits the vLLM that is installed. "
            "[How the patches work](../patching.md).\n",
            _table(("patch", "function of vLLM", "platform", "why", "until"), rows),
        ]
    )


def upstream_page() -> str:
    from tests.compatibility.ledger import seams

    rows = [
        (
            f"`{seam.where.replace(':', '.')}`",
            ", ".join(
                [f"{seam.kind} `{part}`" if i == 0 else f"`{part}`" for i, part in enumerate(seam.parts)]
            ),
            ", ".join(f"`{module}`" for module in seam.by),
            seam.why,
        )
        for seam in seams()
    ]
    return "\n".join(
        [
            NOTE + "# What is relied on in vLLM\n",
            "Every name that the package patches, imports, or reaches through an object of vLLM's, and who "
            "needs it (below `vllm_dare`). `python -m tests.compatibility SOURCE` holds this list against a "
            "vLLM without importing it. [What was checked](../compatibility.md).\n",
            _table(("name of vLLM", "what of it", "relied on by", "what for"), rows),
        ]
    )


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the ledger of vLLM's names is beside the tests
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)


if __name__ == "__main__":
    main()
