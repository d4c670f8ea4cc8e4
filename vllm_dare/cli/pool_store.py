"""`vllm-dare pool push`, `pull` and `compact`: pools in object stores."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_dare.cli.progress import progress_bars

if TYPE_CHECKING:
    from vllm_dare.store.compact import CompactReport

Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="The store: s3://bucket/path, file:///path, or what fsspec knows."),
]


def push(
    pool: Annotated[Path, typer.Argument(metavar="DIR", help="A pool directory.")],
    url: Url,
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the pool that is there, learned text included.")
    ] = False,
) -> None:
    """Put a pool into an object store, for engines on many machines.

    Engines that serve from the store take it up within seconds.
    """
    from vllm_dare.store.transfer import push_pool

    with progress_bars() as progress_of:
        manifest = push_pool(pool, url, overwrite=overwrite, progress=progress_of("files uploaded"))
    typer.echo(f"Pushed {pool} to {url}: {len(manifest.segments):,} segment files.")


def pull(
    url: Url,
    output: Annotated[Path, typer.Argument(metavar="DIR", help="The pool directory to write.")],
) -> None:
    """Copy a pool from an object store into a new directory."""
    from vllm_dare.store.transfer import pull_pool

    with progress_bars() as progress_of:
        manifest = pull_pool(url, output, progress=progress_of("files fetched"))
    typer.echo(f"Pulled {url} to {output}: {len(manifest.segments):,} segment files.")


def compact(
    url: Url,
    *,
    tokens: Annotated[int | None, typer.Option(min=1, help="Keep at most so many tokens.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Merge what engines have learned into a store's pool; the oldest text goes where there is too much.

    A document whose id comes again replaces the older one. Run this now and then, from anywhere: one at a
    time works, and one that is killed has changed nothing or all. Text that cannot be read is set aside, and
    named. With --tokens, a pool that is too large is cut also where there is nothing to merge.
    """
    from vllm_dare.store.compact import compact

    with progress_bars() as progress_of:
        report = compact(url, tokens, progress=progress_of("tokens sorted"))
    _warn(report)
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"num_set_aside": len(report.set_aside)}, indent=2))
        return
    if not report.num_batches:
        typer.echo(f"{url} has nothing {'else ' if report.set_aside else ''}to merge.")
    else:
        typer.echo(
            f"Merged {report.num_new:,} learned documents into {url}; {report.num_replaced:,} gave way to a "
            f"newer one of the same id. The pool has {report.num_tokens:,} tokens."
        )
    if report.num_cut:
        typer.echo(
            f"The {report.num_cut:,} oldest tokens went, so that the pool has {report.num_tokens:,} now."
        )
    elif tokens is not None and report.num_tokens is None:
        typer.echo(f"It has no more than {tokens:,} tokens, so that nothing was cut.")
    if report.num_foreign:
        typer.echo(f"{report.num_foreign:,} learned documents of another tokenizer were left out for good.")
    if report.num_removed:
        typer.echo(f"{report.num_removed:,} files that nobody needs any more went.")


def _warn(report: "CompactReport") -> None:
    """Name what could not be read, apart from the figures."""
    if report.set_aside:
        typer.echo(
            f"Warning: {len(report.set_aside):,} batches of learned text cannot be read and were set aside: "
            "they stay in the store, unmerged, and each `pool compact` tries them again.",
            err=True,
        )
    for reason in report.set_aside.values():
        typer.echo(f"  {reason}", err=True)
