"""`vllm-dare group …`: make groups of users and of items, and ask which one serves whom."""

import typer

from vllm_dare.cli.group_explain import explain
from vllm_dare.cli.group_items import items
from vllm_dare.cli.group_users import users

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Groups: whose text drafts for whom."
)
app.command()(users)
app.command()(items)
app.command()(explain)
