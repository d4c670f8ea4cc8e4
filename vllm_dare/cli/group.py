"""`vllm-dare group …`: make groups of users and of items."""

import typer

from vllm_dare.cli.group_users import users

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Groups: whose text drafts for whom."
)
app.command()(users)
