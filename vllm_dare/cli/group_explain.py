"""`vllm-dare group explain`: which group serves a request, and why."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_dare.errors import DareError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_dare.routing.query import Query
    from vllm_dare.routing.router import Router


def explain(
    directory: Annotated[
        Path, typer.Argument(metavar="POOL|DIR", help="A pool, or a directory that `vllm-dare group` wrote.")
    ],
    *,
    group: Annotated[str | None, typer.Option(help="As dare_group.")] = None,
    user: Annotated[str | None, typer.Option(metavar="ID", help="As dare_user.")] = None,
    item: Annotated[str | None, typer.Option(metavar="ID", help="As dare_item.")] = None,
    history: Annotated[
        str | None, typer.Option(metavar="ID,ID,…", help="As dare_history: ids of items.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="As dare_attributes; repeat it for several."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Say which group serves a request, what each step of the chain says, and whether there is text.

    The first step with an answer counts: the group named, the user, the item, the history, the attributes.
    Text that an engine learned while serving is not looked at.
    """
    query = _query(group=group, user=user, item=item, history=history, attributes=attribute)
    result = _explanation(directory, query)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _print(result)


def _query(
    *,
    group: str | None,
    user: str | None,
    item: str | None,
    history: str | None,
    attributes: list[str] | None,
) -> "Query":
    """The query of a request that says so; refuses what a request would be refused for."""
    from vllm_dare.request import ANY_ENGINE, RequestOptions

    given: dict[str, Any] = {
        "dare_group": group,
        "dare_user": user,
        "dare_item": item,
        "dare_history": None if history is None else [part.strip() for part in history.split(",")],
        "dare_attributes": attributes or None,
    }
    if all(value is None for value in given.values()):
        raise DareError("Say what the request says: --group, --user, --item, --history or --attribute.")
    return RequestOptions.parse(given, ANY_ENGINE).query


def _explanation(directory: Path, query: "Query") -> dict[str, Any]:
    from vllm_dare.pool.manifest import is_pool
    from vllm_dare.pool.pool import RetrievalPool

    if is_pool(directory):
        with RetrievalPool.open(directory) as pool:
            return _ask(pool.router, query, pool)
    return _ask(_router_of(directory, query), query, None)


def _router_of(directory: Path, query: "Query") -> "Router":
    """The router of a directory of groups, with the assignments of those who are asked for alone."""
    from tempfile import TemporaryDirectory

    from vllm_dare.pool.assignments import Assignments, write_assignments
    from vllm_dare.pool.group_inputs import group_router, read_groups
    from vllm_dare.routing.router import Router

    if not directory.is_dir():
        raise DareError(f"There is no directory {directory}; give a pool, or what `vllm-dare group` wrote.")
    file = group_router(directory)
    asked = {("user", query.user), ("item", query.item)}

    def found() -> "Iterator[Any]":
        return (row for row in read_groups([directory]) if row[:2] in asked)

    with TemporaryDirectory() as folder:  # removed at once: the table stays mapped
        return Router(Assignments.open(write_assignments(Path(folder), found())), [file])


def _ask(router: "Router", query: "Query", pool: Any) -> dict[str, Any]:
    """What the chain says; of a pool, what text there is for it."""
    answer = router.route(query)
    steps = [{"step": step.name, "group": step.group, "reason": step.reason} for step in router.steps(query)]
    result: dict[str, Any] = {"group": answer.group, "reason": answer.reason, "steps": steps}
    if pool is not None:
        result["documents"] = _num_documents(pool.manifest, pool.manifest.groups.get(answer.group, []))
        result["global_documents"] = _num_documents(pool.manifest, pool.manifest.global_segments)
    return result


def _num_documents(manifest: Any, segments: list[str]) -> int:
    return sum(manifest.segments[name].num_documents for name in segments)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("step", "group", "why")
    decided = False
    for step in result["steps"]:
        counts = step["group"] is not None and not decided
        decided = decided or counts
        table.add_row(
            step["step"],
            escape(step["group"] or "-"),
            escape(step["reason"]),
            style="bold" if counts else "",
        )
    Console().print(table)
    typer.echo(f"Group: {result['group'] or 'none'} ({result['reason']}).")
    if "documents" in result:
        typer.echo(_text_of(result))


def _text_of(result: dict[str, Any]) -> str:
    everybody = f"everybody's {result['global_documents']:,} documents"
    if not result["global_documents"]:
        everybody = "no text (the pool has no global segment)"
    if result["documents"]:
        return f"Text: {result['documents']:,} documents of the group, and {everybody}."
    return (
        f"Text: the pool has none for the group; drafts come from {everybody}."
        if result["group"]
        else (f"Text: drafts come from {everybody}.")
    )
