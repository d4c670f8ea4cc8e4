"""`vllm-dare pool push` and `pull`: pools in object stores."""

from pathlib import Path
from typing import Annotated

import typer

from vllm_dare.cli.progress import progress_bars

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
