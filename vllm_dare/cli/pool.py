"""`vllm-dare pool …`: build, inspect, verify and merge retrieval pools."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_dare.cli import options
from vllm_dare.cli.pool_changes import add, drop, flush, prune, refresh, show_skipped
from vllm_dare.cli.pool_store import compact, pull, push
from vllm_dare.cli.progress import progress_bars
from vllm_dare.store.location import is_url

if TYPE_CHECKING:
    from vllm_dare.pool.build import BuildReport
    from vllm_dare.pool.rows import BadRows
    from vllm_dare.pool.summary import PoolSummary

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Retrieval pools: draft material."
)
app.command()(prune)
app.command()(refresh)
app.command()(drop)
app.command()(add)
app.command()(flush)
app.command()(push)
app.command()(pull)
app.command()(compact)

PoolDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A pool directory.")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="The pool directory to write.")]


class ProvenanceChoice(StrEnum):
    """The choices of --provenance."""

    strict = "strict"
    relaxed = "relaxed"
    external = "external"


@app.command()
def build(
    documents: Annotated[
        list[Path],
        typer.Argument(
            help="Files of documents: .jsonl, .jsonl.gz or .parquet, with id, text or token_ids, and if they "
            "have them group, and the user or item that the text is about."
        ),
    ],
    *,
    tokenizer: Annotated[
        str, typer.Option(metavar="MODEL", help="The model's tokenizer: a directory or a hub id.")
    ],
    output: Output,
    assignments: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Who belongs to which group: a table with the columns user or item, and group, or a "
            "directory that `vllm-dare group` wrote; repeat it for several, of which later ones win.",
        ),
    ] = None,
    provenance: Annotated[
        ProvenanceChoice,
        typer.Option(help="How the text was verified, if vllm-dare wrote it."),
    ] = ProvenanceChoice.external,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model that wrote the text, for the record.")
    ] = None,
    no_global: Annotated[
        bool, typer.Option("--no-global", help="Leave out the segment of all documents.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing pool.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count documents that cannot be used instead of stopping.")
    ] = False,
    engine: options.EngineChoice = options.Engine.local,
    ray_address: options.RayAddress = None,
) -> None:
    """Build a pool from text that a model wrote before."""
    from vllm_dare.pool.build import build_pool
    from vllm_dare.pool.documents import read_documents
    from vllm_dare.pool.group_inputs import read_groups, read_routers
    from vllm_dare.pool.rows import BadRows

    options.check_ray_options(engine, ray_address=ray_address)
    bad_rows = BadRows(skip=skip_bad)
    with progress_bars() as progress_of:
        show_read = progress_of("documents read")
        settings: dict[str, Any] = {
            "provenance": provenance.value,
            "model": model,
            "global_segment": not no_global,
            "assignments": read_groups(assignments) if assignments else None,
            "routers": read_routers(assignments or ()),
            "overwrite": overwrite,
            "bad_rows": bad_rows,
            "read_progress": lambda num_documents: show_read(num_documents, None),
            "sort_progress": progress_of("tokens sorted"),
        }
        if engine is options.Engine.ray:
            from vllm_dare.scale.pool import build_pool_on_ray

            report = build_pool_on_ray(documents, tokenizer, output, address=ray_address, **settings)
        else:
            report = build_pool(read_documents(documents, bad_rows), tokenizer, output, **settings)
    _print_build(output, report, bad_rows)


@app.command()
def info(
    pool: Annotated[str, typer.Argument(metavar="DIR|URL", help="A pool directory, or the URL of a store.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show what a pool holds."""
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.pool.summary import summarize

    live = None
    if is_url(pool):
        from vllm_dare.store.summary import summarize_store

        summary, live = summarize_store(pool)
    else:
        with RetrievalPool.open(pool) as opened:
            summary = summarize(opened.manifest, opened.routers)
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        _print_info(pool, summary)
        if live is not None:
            typer.echo(live)


@app.command()
def verify(directory: PoolDirectory) -> None:
    """Check every file of a pool in full: checksums, token ids, order."""
    from vllm_dare.pool.pool import RetrievalPool

    with RetrievalPool.open(directory) as pool, progress_bars() as progress_of:
        pool.verify(progress_of("bytes verified"))
        num_segments = len(pool.manifest.segments)
    typer.echo(f"{directory} is intact ({num_segments:,} segment files).")


@app.command()
def merge(
    inputs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Pools of the same tokenizer.")],
    *,
    output: Output,
) -> None:
    """Merge pools into a new one.

    Every document of each is kept; where they disagree on a group assignment, the later pool counts.
    """
    from vllm_dare.pool.merge import merge_pools
    from vllm_dare.pool.summary import summarize

    with progress_bars() as progress_of:
        summary = summarize(merge_pools(inputs, output, progress=progress_of("tokens sorted")))
    typer.echo(f"Merged {len(inputs)} pools into {output}: {_contents(summary)}.")


def _print_build(output: Path, report: "BuildReport", bad_rows: "BadRows") -> None:
    from vllm_dare.pool.summary import summarize

    typer.echo(f"Built {output}: {_contents(summarize(report.manifest))}.")
    if report.num_duplicates:
        typer.echo(f"{report.num_duplicates:,} documents gave way to a later one with the same id.")
    if report.num_empty:
        typer.echo(f"{report.num_empty:,} documents without any text were left out.")
    if report.num_ambiguous:
        typer.echo(
            f"{report.num_ambiguous:,} documents are in no group, because their id is both a user's and an "
            "item's: give them a group, or build one pool of users and one of items, each with its own "
            "--assignments, and join them with `pool merge`."
        )
    if report.mismatch is not None:
        typer.echo(report.mismatch)
    show_skipped(bad_rows)


def _contents(summary: "PoolSummary") -> str:
    return (
        f"{summary.num_documents:,} documents, {summary.num_tokens:,} tokens, {summary.num_groups:,} groups, "
        f"{summary.num_bytes / 1e6:,.1f} MB"
    )


def _groups(summary: "PoolSummary") -> str:
    if summary.num_groups == 0 or summary.groups_draft:
        return f"{summary.num_groups:,}"
    return f"{summary.num_groups:,} (in this pool, everybody's text drafts as well without asking them)"


def _print_info(pool: str, summary: "PoolSummary") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(pool), show_header=False)
    tokenizer = summary.tokenizer
    for name, value in (
        ("tokenizer", f"{tokenizer.name} ({tokenizer.fingerprint}, {tokenizer.vocab_size:,} tokens)"),
        ("built", summary.created_at),
        ("provenance", ", ".join(summary.provenance)),
        ("documents", f"{summary.num_documents:,}"),
        ("tokens", f"{summary.num_tokens:,}"),
        ("groups", _groups(summary)),
        ("segments", f"{summary.num_segments:,}"),
        ("size", f"{summary.num_bytes / 1e6:,.1f} MB"),
        ("global segment", "yes" if summary.has_global_segment else "no"),
        ("group assignments", "yes" if summary.has_assignments else "no"),
        (
            "routers",
            "\n".join(
                f"{router.kind}: {router.num_groups:,} groups, {router.num_items:,} items, "
                f"{router.num_attribute_values:,} attribute values"
                for router in summary.routers
            )
            or "none",
        ),
        (
            "wording",
            "not known" if summary.num_pivots is None else f"known but after {summary.num_pivots:,} contexts",
        ),
    ):
        table.add_row(name, escape(value))
    console = Console()
    console.print(table)
    if summary.biggest_groups:
        groups = Table("biggest groups", "documents", "tokens")
        for group in summary.biggest_groups:
            groups.add_row(escape(group.name), f"{group.num_documents:,}", f"{group.num_tokens:,}")
        console.print(groups)
