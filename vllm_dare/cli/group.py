"""`vllm-dare group …`: put users and items into groups, and ask which group serves whom."""

import typer

from vllm_dare.cli.group_explain import explain
from vllm_dare.cli.group_items import items

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Groups of similar users or items."
)
app.command()(items)
app.command()(explain)
