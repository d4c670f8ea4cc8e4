"""`vllm-dare pool prune`, `refresh` and `drop`: less text, newer text, and one user's text out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_dare.cli.progress import progress_bars
from vllm_dare.errors import DareError

if TYPE_CHECKING:
    from vllm_dare.pool.prune import Budget

Directory = Annotated[Path, typer.Argument(metavar="POOL", help="A pool directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def prune(
    directory: Directory,
    *,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="The pool directory to write.")],
    tokens: Annotated[int | None, typer.Option(min=1, help="Keep at most so many tokens.")] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Keep this part of the tokens, such as 10%.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a small pool that drafts nearly as well.

    It keeps the passages whose text other documents go on with, each of them a few times. Give --tokens or
    --keep; they bound the global segment, and all groups together.
    """
    from vllm_dare.pool.prune import prune_pool

    budget = _budget(tokens, keep)
    with progress_bars() as progress_of:
        report = prune_pool(
            directory,
            output,
            budget,
            choose_progress=progress_of("tokens chosen"),
            sort_progress=progress_of("tokens sorted"),
        )
    before, after = report.num_tokens_before, report.num_tokens
    if as_json:
        typer.echo(json.dumps({"tokens_before": before, "tokens_after": after}, indent=2))
    else:
        typer.echo(
            f"Pruned {directory} to {output}: {before:,} tokens before, {after:,} ({after / before:.1%})."
        )
        if report.emptied:
            typer.echo(
                f"Of {len(report.emptied):,} groups nothing was kept, such as {report.emptied[0]}: their "
                "share of the tokens is too small."
            )


def refresh(
    directory: Directory,
    documents: Annotated[
        list[Path],
        typer.Argument(
            metavar="NEW_DOCUMENTS...",
            help="Files of documents as `pool build` takes them, or pools such as POOL/live.",
        ),
    ],
    *,
    tokens: Annotated[int, typer.Option(min=1, help="Keep at most so many tokens.")],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The pool's tokenizer, for documents with text.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Keep what drafts best, see `pool prune`, not what is newest.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count documents that cannot be used instead of stopping.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put new documents into a pool, in place; the oldest go while there are too many tokens.

    A document whose id comes again replaces the older one. An engine that serves from the pool takes the
    new version up within seconds.
    """
    from vllm_dare.pool.refresh import refresh_pool
    from vllm_dare.pool.rows import BadRows

    bad_rows = BadRows(skip=skip_bad)
    with progress_bars() as progress_of:
        report = refresh_pool(
            directory,
            documents,
            tokens,
            tokenizer=tokenizer,
            prune=prune,
            bad_rows=bad_rows,
            sort_progress=progress_of("tokens sorted"),
        )
    if as_json:
        figures = {
            "tokens_before": report.num_tokens_before,
            "tokens_after": report.num_tokens,
            "new_documents": report.num_new,
            "replaced_documents": report.num_replaced,
            "dropped_documents": report.num_dropped,
            "skipped_rows": bad_rows.num_skipped,
        }
        typer.echo(json.dumps(figures, indent=2))
        return
    typer.echo(
        f"Refreshed {directory}: {report.num_tokens_before:,} tokens before, {report.num_tokens:,} now; "
        f"{report.num_new:,} documents came, {report.num_replaced:,} gave way to a new one of the same id, "
        f"{report.num_dropped:,} went because they were the oldest."
    )
    if bad_rows.num_skipped:
        typer.echo(f"{bad_rows.num_skipped:,} rows were skipped; the first: {bad_rows.first_reason}")


def drop(
    directory: Directory,
    *,
    user: Annotated[str | None, typer.Option(help="The user whose text is to go.")] = None,
    item: Annotated[str | None, typer.Option(help="The item whose text is to go.")] = None,
    document_id: Annotated[
        str | None, typer.Option("--id", help="The id, be it a user's, an item's or neither's.")
    ] = None,
) -> None:
    """Remove the text of one user, item or id from a pool, in place, and from what was learned into it."""
    from vllm_dare.pool.assignments import entity_hash
    from vllm_dare.pool.drop import drop_documents

    given = {"user": user, "item": item, "id": document_id}
    named = {kind: value for kind, value in given.items() if value is not None}
    if len(named) != 1:
        raise DareError("Give one of --user, --item and --id; it says whose text is to go.")
    if document_id is not None:
        keys = {entity_hash(kind, document_id) for kind in ("user", "item", "document")}
    else:
        keys = {entity_hash("user", user) if user is not None else entity_hash("item", str(item))}
    ((kind, value),) = named.items()
    report = drop_documents(directory, keys, f"{kind} {value!r}")
    if report.num_documents:
        typer.echo(
            f"Removed {kind} {value!r} from {directory}: {report.num_documents:,} documents or passages in "
            f"{report.num_segments:,} segment files."
        )
    else:
        typer.echo(
            f"Nothing of {kind} {value!r} was left in {directory}; {report.num_files:,} old files went."
        )
    if report.is_read:
        typer.echo(
            "An engine still reads the old files. They stay until it has taken up the new version, with its "
            "next step: run this again then, to remove them."
        )


def _budget(tokens: int | None, keep: str | None) -> "Budget":
    from vllm_dare.pool.prune import Budget

    if (tokens is None) == (keep is None):
        raise DareError("Give either --tokens or --keep; one of them says how much may stay.")
    if keep is None:
        return Budget(tokens=tokens)
    try:
        share = float(keep.removesuffix("%")) / 100 if keep.endswith("%") else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise DareError(f"--keep takes a percentage above 0% and up to 100%, such as 10%, not {keep!r}.")
    return Budget(share=share)
