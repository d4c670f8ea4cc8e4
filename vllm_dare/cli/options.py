"""Options that commands share: what to generate, and the engine that does it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_dare.errors import DareError

# Panels of a command's help.
INPUT, DRAFTS, SAMPLING, ENGINE, OUTPUT = "Input and output", "Drafts", "Sampling", "Engine", "Reports"
RAY = "On a Ray cluster"

Model = Annotated[str, typer.Option(help="Model directory or name.", rich_help_panel=INPUT)]
Prompts = Annotated[
    Path,
    typer.Option(
        help="Rows with id and prompt (or messages): .jsonl, .jsonl.gz or .parquet, or a directory of these.",
        rich_help_panel=INPUT,
    ),
]
Pool = Annotated[
    Path | None,
    typer.Option(
        help="Retrieval pool; without one, drafts come from each row's own text.", rich_help_panel=DRAFTS
    ),
]
PoolOrUrl = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|URL",
        help="Retrieval pool, or the URL of a store; without one, drafts come from each row's own text.",
        rich_help_panel=DRAFTS,
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        min=1, help="Most tokens a row; a row's own max_tokens goes first.", rich_help_panel=SAMPLING
    ),
]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.", rich_help_panel=SAMPLING)]
TopP = Annotated[float, typer.Option(min=1e-6, max=1, help="1 is off.", rich_help_panel=SAMPLING)]
TopK = Annotated[int, typer.Option(min=0, help="0 is off.", rich_help_panel=SAMPLING)]
MaxModelLen = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of prompt and text together.", rich_help_panel=ENGINE)
]
Dtype = Annotated[str | None, typer.Option(help="Weights' type, such as bfloat16.", rich_help_panel=ENGINE)]
EngineArgs = Annotated[
    str, typer.Option(help="Further vllm.LLM arguments as JSON.", metavar="JSON", rich_help_panel=ENGINE)
]
# Where results go.
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write everything found, as JSON.", rich_help_panel=OUTPUT)
]
Plots = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write PNG pictures there.", rich_help_panel=OUTPUT)
]
Markdown = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a Markdown report.", rich_help_panel=OUTPUT)
]


class Engine(StrEnum):
    """The choices of --engine."""

    local = "local"
    ray = "ray"


EngineChoice = Annotated[
    Engine, typer.Option("--engine", help="local: this machine; ray: a Ray cluster.", rich_help_panel=RAY)
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="The cluster's head, such as host:6379.",
        show_default="RAY_ADDRESS, or this machine's",
        rich_help_panel=RAY,
    ),
]


def check_ray_options(engine: Engine, **options: object) -> None:
    """Refuse what only means something on a Ray cluster, but was given without one.

    Args:
        engine: the choice.
        options: values by name; None where not given.

    Raises:
        typer.BadParameter: see above.
    """
    if engine is Engine.local:
        for name, value in options.items():
            if value is not None:
                raise typer.BadParameter(f"--{name.replace('_', '-')} needs --engine ray.")


def json_object(text: str) -> dict[str, Any]:
    """The value of ``--engine-args``.

    Raises:
        DareError: it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DareError(
            f"--engine-args must be a JSON object such as '{{\"enforce_eager\": true}}', not {text!r}."
        )
    return value
