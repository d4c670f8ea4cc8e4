"""The `vllm-dare` command."""

import sys
from typing import Annotated

import typer

from vllm_dare import __version__
from vllm_dare.cli.bench import bench
from vllm_dare.cli.doctor import doctor
from vllm_dare.cli.evaluate import evaluate
from vllm_dare.cli.generate import generate
from vllm_dare.cli.group import app as group_app
from vllm_dare.cli.pool import app as pool_app
from vllm_dare.cli.prompts import prompts
from vllm_dare.cli.replay import replay
from vllm_dare.errors import DareError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.command()(prompts)
app.command()(generate)
app.command()(replay)
app.command()(bench)
app.command()(evaluate)
app.command()(doctor)
app.add_typer(pool_app, name="pool")
app.add_typer(group_app, name="group")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vllm-dare {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fast LLM text generation for recommender systems, on vLLM."""


def main() -> None:
    """Run the command line; what a user did wrong is one sentence, never a traceback."""
    try:
        app()
    except DareError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a file or disk that no check has foreseen
        name = f"{error.filename}: " if error.filename else ""
        typer.echo(f"Error: {name}{error.strerror or error}.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
