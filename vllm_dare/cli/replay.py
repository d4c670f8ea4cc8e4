"""`vllm-dare replay`: what drafts are worth on your own text, told without a model."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_dare.cli import options
from vllm_dare.errors import DareError

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_dare.evaluation.corpus import Corpus
    from vllm_dare.evaluation.order import Order
    from vllm_dare.evaluation.study import Scheme, Study

INTERRUPTED = 130
_WIDTH = 160  # of tables that go to a file

Tell = Callable[[str, int, int | None], None]


def replay(
    documents: Annotated[
        list[Path],
        typer.Argument(
            help="Files of documents: .jsonl, .jsonl.gz or .parquet, with id, text or token_ids, and if "
            "they have them group and prompt."
        ),
    ],
    *,
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The model's tokenizer: a directory or a hub id; or mistral-v1.",
            rich_help_panel=options.INPUT,
        ),
    ],
    split: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Ids of the pool and held-out ones: {"train_users": [...], "test_users": [...]}.',
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    order: Annotated[
        bool,
        typer.Option(
            "--order",
            help="Instead of a split: draft for each document, in the files' order, from those before it.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The split's list for the pool; by default the pair of lists that fits the documents.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The split's list to draft for.", rich_help_panel=options.INPUT),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Draft for so many documents.", rich_help_panel=options.INPUT),
    ] = None,
    no_prompts: Annotated[
        bool,
        typer.Option(
            "--no-prompts", help="As if the documents had no prompts.", rich_help_panel=options.INPUT
        ),
    ] = False,
    draft: Annotated[
        str, typer.Option(help="Most draft tokens a step.", rich_help_panel=options.DRAFTS)
    ] = "16",
    sources: Annotated[
        str | None,
        typer.Option(
            help="What drafts: own, global, group, group+global; own text always drafts along. By default "
            "global, with group if there are groups.",
            rich_help_panel=options.DRAFTS,
        ),
    ] = None,
    assignments: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Another grouping: a table with the columns user or item, and group, or a directory that "
            "`vllm-dare group` wrote; repeat it to compare several.",
            rich_help_panel=options.DRAFTS,
        ),
    ] = None,
    pool_size: Annotated[
        str | None,
        typer.Option(
            help="So many documents, the first of the split's; by default all.",
            rich_help_panel=options.DRAFTS,
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Other drafters on the same text: arctic (ArcticInference's suffix trees), ngram (vLLM's).",
            rich_help_panel=options.DRAFTS,
        ),
    ] = None,
    json_file: options.JsonFile = None,
    plots: options.Plots = None,
) -> None:
    """Replay texts as if a model wrote them, and count how many steps drafts save.

    A pool is built from some documents; for the others, every step drafts, the drafts that the text goes on
    with count as accepted, and one token comes on top, as vLLM does it for greedy requests. No model is
    needed, and every setting sees the same text. --draft, --sources, --pool-size and --peers take several
    values, separated by commas: all combinations are compared. Exit status: 0 done, 1 failed, 130
    interrupted.
    """
    from rich.console import Console

    from vllm_dare.evaluation.bench_provenance import provenance
    from vllm_dare.evaluation.corpus import read_corpus
    from vllm_dare.evaluation.order import Order
    from vllm_dare.evaluation.split import read_split
    from vllm_dare.evaluation.study import Study, check_lengths, check_peers, parse_sources

    _check_mode(split, order, train or test or pool_size)
    inputs = [*documents, *(assignments or ()), *([split] if split is not None else [])]
    _check_outputs(inputs, json_file, plots)
    origin = provenance()  # now: a run takes long, and keeps the machine busy
    lengths = _numbers("--draft", draft)
    check_lengths(lengths)
    peer_names = _names(peers)
    check_peers(peer_names)
    chosen_sources = [parse_sources(name) for name in _names(sources)]
    console = Console(stderr=True)
    with _progress(console) as tell:
        corpus = read_corpus(
            documents,
            tokenizer,
            prompts=not no_prompts,
            progress=lambda number: tell("reading documents", number, None),
        )
    study: Study | Order
    if split is None:
        schemes = _schemes(corpus, assignments, "")
        chosen = chosen_sources or [_default_sources(schemes)]
        study = Order(corpus, schemes, lengths, chosen, peer_names, limit)
    else:
        parts = read_split(split, corpus.texts, train, test)
        schemes = _schemes(corpus, assignments, parts.train_key)
        chosen = chosen_sources or [_default_sources(schemes)]
        sizes = _numbers("--pool-size", pool_size or "all", {"all": len(parts.train)})
        study = Study(corpus, parts, schemes, lengths, chosen, sizes, peer_names, limit)
    console.print(_description(study), highlight=False, markup=False, soft_wrap=True)
    records, status = _run(study, console)
    _report(study, records, status, origin, json_file, plots)
    if status == "interrupted":
        console.print(
            f"Interrupted: the {len(records)} of {len(study.settings())} settings that were done are above.",
            highlight=False,
        )
        raise typer.Exit(INTERRUPTED)


def _run(study: "Study | Order", console: "Console") -> tuple[list[dict[str, Any]], str]:
    """The settings' records, until the end or Ctrl-C, and how it ended."""
    from vllm_dare.evaluation.order import Order, run_order
    from vllm_dare.evaluation.study import run_study

    records = []
    try:
        with _progress(console) as tell:
            outcomes = run_order(study, tell) if isinstance(study, Order) else run_study(study, tell)
            for outcome in outcomes:
                records.append(outcome.as_dict())
    except KeyboardInterrupt:
        return records, "interrupted"
    return records, "done"


def _report(
    study: "Study | Order",
    records: list[dict[str, Any]],
    status: str,
    origin: dict[str, Any],
    json_file: Path | None,
    plots: Path | None,
) -> None:
    from rich.console import Console

    from vllm_dare.evaluation.grid import stacked
    from vllm_dare.evaluation.replay_plots import write_plots
    from vllm_dare.evaluation.replay_report import result_file, tables
    from vllm_dare.generation.paths import report_errors
    from vllm_dare.pool.files import replace_text

    out = Console(width=None if sys.stdout.isatty() else _WIDTH)
    if records:
        for table in (part for grid in tables(records) for part in stacked(grid, out.width)):
            out.print(table)
    if json_file is not None:
        with report_errors("--json", json_file):
            result = result_file(study, records, status, origin)
            replace_text(json_file, json.dumps(result, indent=1) + "\n")
    if plots is not None and records:
        with report_errors("--plots", plots):
            write_plots(records, plots)


def _description(study: "Study | Order") -> str:
    """Which documents were chosen, so that nobody takes figures for those of others."""
    from vllm_dare.evaluation.order import Order

    ids = study.replayed if isinstance(study, Order) else study.held_out
    with_prompt = sum(1 for i in ids if len(study.corpus.texts[i].prompt))
    if isinstance(study, Order):
        line = (
            f"{len(ids):,} documents, {with_prompt:,} with a prompt, are drafted for from those before them."
        )
    else:
        split = study.split
        line = (
            f"{len(split.train):,} documents of {split.train_key!r} for the pool; {len(study.held_out):,} of "
            f"{split.test_key!r}, {with_prompt:,} with a prompt, are drafted for."
        )
        if split.num_missing:
            line += f" {split.num_missing:,} ids of these lists have no document with text."
    if study.corpus.num_empty:
        line += f" {study.corpus.num_empty:,} documents without any text were left out."
    return line


def _check_mode(split: Path | None, order: bool, of_split: str | None) -> None:
    if (split is None) != order:
        raise DareError("Give either --split FILE or --order; one of them says what drafts for what.")
    if order and of_split is not None:
        raise DareError("--train, --test and --pool-size choose from a split; leave them out with --order.")


def _schemes(corpus: "Corpus", files: Sequence[Path] | None, about: str) -> "list[Scheme]":
    """The groupings of --assignments; without it, that of the documents."""
    from vllm_dare.evaluation.groupings import own_scheme, read_schemes

    return read_schemes(files, about) if files else [own_scheme(corpus)]


def _default_sources(schemes: "Sequence[Scheme]") -> tuple[str, ...]:
    has_groups = any(scheme.group_of for scheme in schemes)
    return ("own", "group", "global") if has_groups else ("own", "global")


def _check_outputs(inputs: Sequence[Path], json_file: Path | None, plots: Path | None) -> None:
    from vllm_dare.generation.paths import check_report_file, check_report_folder

    if json_file is not None:
        check_report_file("--json", json_file, [*inputs, *([plots] if plots is not None else [])])
    if plots is not None:
        check_report_folder("--plots", plots)


def _names(text: str | None) -> list[str]:
    """The distinct names of a comma-separated list, in its order."""
    return list(dict.fromkeys(part.strip() for part in text.split(","))) if text is not None else []


def _numbers(option: str, text: str, words: dict[str, int] | None = None) -> list[int]:
    """The distinct numbers of a comma-separated list, in its order; some words may stand for numbers.

    Raises:
        DareError: one is not a whole number.
    """
    words = words or {}
    try:
        return list(dict.fromkeys(words[name] if name in words else int(name) for name in _names(text)))
    except ValueError:
        kinds = " or ".join(("whole numbers", *words))
        raise DareError(f"{option} takes {kinds} separated by commas, not {text!r}.") from None


@contextmanager
def _progress(console: "Console") -> Iterator[Tell]:
    """A bar on a terminal, gone when it is done; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(what: str, done: int, total: int | None) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield tell
