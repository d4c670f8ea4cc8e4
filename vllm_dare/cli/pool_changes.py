"""`vllm-dare pool prune`, `refresh`, `drop`, `add` and `flush`: changes of a pool, also while it serves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vllm_dare.cli.progress import progress_bars
from vllm_dare.config import LiveConfig
from vllm_dare.errors import DareError

if TYPE_CHECKING:
    from vllm_dare.pool.assignments import EntityKind
    from vllm_dare.pool.drop import DropReport
    from vllm_dare.pool.prune import Budget
    from vllm_dare.pool.rows import BadRows

Directory = Annotated[Path, typer.Argument(metavar="POOL", help="A pool directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
Wait = Annotated[
    float,
    typer.Option(min=0, metavar="SECONDS", help="How long to wait, at most, until engines have followed."),
]
# Whose key each option stands for.
_KINDS: "dict[str, tuple[EntityKind | Literal['document'], ...]]" = {
    "user": ("user",),
    "item": ("item",),
    "id": ("user", "item", "document"),
}


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
    with _repeatable(), progress_bars() as progress_of:
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
    show_skipped(bad_rows)


def drop(
    directory: Directory,
    *,
    user: Annotated[str | None, typer.Option(help="The user whose text is to go.")] = None,
    item: Annotated[str | None, typer.Option(help="The item whose text is to go.")] = None,
    document_id: Annotated[
        str | None, typer.Option("--id", help="The id, be it a user's, an item's or neither's.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="The group whose text is to go.")] = None,
    wait: Wait = 30.0,
    as_json: AsJson = False,
) -> None:
    """Remove the text of one user, item, id or group from a pool, in place, and from what was learned.

    Engines that serve from the pool stop drafting from it within seconds, and those that learn forget it.
    """
    from vllm_dare.pool.assignments import entity_hash
    from vllm_dare.pool.drop import drop_documents, drop_group

    given = {"user": user, "item": item, "id": document_id, "group": group}
    named = {kind: value for kind, value in given.items() if value is not None}
    if len(named) != 1:
        raise DareError("Give one of --user, --item, --id and --group; it says whose text is to go.")
    ((kind, value),) = named.items()
    with _repeatable():
        if group is not None:
            report = drop_group(directory, group, wait_seconds=wait)
        else:
            keys = {entity_hash(one, value) for one in _KINDS[kind]}
            report = drop_documents(directory, keys, f"{kind} {value!r}", wait_seconds=wait)
    if as_json:
        typer.echo(json.dumps(_drop_figures(report), indent=2))
    else:
        _show_drop(report, f"{kind} {value!r}", directory)


def _drop_figures(report: "DropReport") -> dict[str, int | bool]:
    return {
        "documents": report.num_documents,
        "segments": report.num_segments,
        "old_files_removed": report.num_files,
        "old_files_are_read": report.is_read,
        "engines_learn": report.is_learned,
        "engines_have_forgotten": report.is_followed,
        "runs_of_8_tokens": report.proof.num_runs,
        "runs_nobody_else_had": report.proof.num_unique,
        "runs_left": report.proof.num_left,
    }


def _show_drop(report: "DropReport", whose: str, directory: Path) -> None:
    if report.num_documents:
        typer.echo(
            f"Removed {whose} from {directory}: {report.num_documents:,} documents or passages, counted in "
            f"their group and where everybody's text is, in {report.num_segments:,} segment files."
        )
        if report.proof.num_runs:
            typer.echo(
                f"Of {report.proof.num_runs:,} runs of 8 tokens in that text, nobody else had "
                f"{report.proof.num_unique:,}: of these, {report.proof.num_left:,} can still be drafted."
            )
    else:
        typer.echo(f"Nothing of {whose} was left in {directory}; {report.num_files:,} old files went.")
    if report.is_learned and report.is_followed:
        typer.echo("Engines that learn into the pool have forgotten it, too.")
    elif report.is_learned:
        typer.echo(
            "An engine that learns into the pool has not yet forgotten what is in its memory: see its log, "
            "and run this again, or restart it."
        )
    if report.is_read:
        typer.echo(
            "Somebody still reads the old files. They stay until the new version has been taken up: run this "
            "again then, to remove them."
        )


def add(
    directory: Directory,
    documents: Annotated[
        list[Path],
        typer.Argument(metavar="DOCUMENTS...", help="Files of documents as `pool build` takes them."),
    ],
    *,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The pool's tokenizer, for documents with text.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=2**12, help="As dare.live.max_tokens: the most tokens that POOL/live keeps.")
    ] = LiveConfig().max_tokens,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count documents that cannot be used instead of stopping.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add documents to what engines have learned into a pool, while they serve.

    Engines that learn draft from them within seconds. `pool refresh POOL POOL/live` makes them part of the
    pool itself.
    """
    from vllm_dare.pool.learned import add_documents
    from vllm_dare.pool.rows import BadRows

    bad_rows = BadRows(skip=skip_bad)
    with _repeatable():
        report = add_documents(
            directory, documents, max_tokens=tokens, tokenizer=tokenizer, bad_rows=bad_rows
        )
    if as_json:
        figures = {
            "documents": report.num_documents,
            "known_documents": report.num_known,
            "empty_documents": report.num_empty,
            "skipped_rows": bad_rows.num_skipped,
            "tokens": report.num_tokens,
            "engines_learn": report.is_learned,
        }
        typer.echo(json.dumps(figures, indent=2))
        return
    typer.echo(
        f"Documents added to {directory / 'live'}: {report.num_documents:,}; those that were there already: "
        f"{report.num_known:,}."
    )
    if not report.is_learned:
        typer.echo(
            "No engine learns into this pool now: they draft once one is started that does (dare.live)."
        )
    show_skipped(bad_rows)


def flush(directory: Directory, *, wait: Wait = 30.0) -> None:
    """Have engines that learn into a pool write down what is only in their memory, and wait until they have.

    They do so by themselves every ten seconds, and when they end.
    """
    from vllm_dare.pool.learned import flush_learned

    with _repeatable():
        flush_learned(directory, wait_seconds=wait)
    typer.echo(f"All that was learned is in {directory / 'live'}.")


def show_skipped(bad_rows: "BadRows") -> None:
    """Say how many rows were left out, if any."""
    if bad_rows.num_skipped:
        typer.echo(f"{bad_rows.num_skipped:,} rows were skipped; the first: {bad_rows.first_reason}")


@contextmanager
def _repeatable() -> Iterator[None]:
    """At Ctrl-C, say that a change in place may be cut short anywhere, and be made again."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            "Interrupted: the pool is whole, but the change may be there in part or in full; run the same "
            "command again.",
            err=True,
        )
        raise


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
