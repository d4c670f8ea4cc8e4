"""What a replay found: the result file's content, and the tables that are made from it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_dare.evaluation.corpus import Corpus
from vllm_dare.evaluation.grid import Grid
from vllm_dare.evaluation.order import BLOCK_DOCUMENTS, Order
from vllm_dare.evaluation.study import Study

Record = Mapping[str, Any]

_MISSING = "-"


def result_file(
    study: Study | Order, results: Sequence[Record], status: str, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of the result file, as JSON values.

    Args:
        study: what was compared.
        results: the settings' records, from `Outcome.as_dict`.
        status: "done" or "interrupted".
        origin: `vllm_dare.evaluation.bench_provenance.provenance` as the run began.
    """
    return {
        "command": "replay",
        "status": status,
        "provenance": dict(origin),
        "corpus": _corpus(study.corpus),
        "split": _split(study) if isinstance(study, Study) else None,
        "results": list(results),
    }


def _corpus(corpus: Corpus) -> dict[str, Any]:
    return {
        "files": [{"name": name, "sha256": digest} for name, digest in corpus.files],
        "documents": len(corpus.texts),
        "without_text": corpus.num_empty,
        "tokenizer": corpus.tokenizer.model_dump(),
    }


def _split(study: Study) -> dict[str, Any]:
    split = study.split
    return {
        "train": split.train_key,
        "test": split.test_key,
        "train_documents": len(split.train),
        "held_out_documents": len(study.held_out),
        "held_out_with_prompt": sum(1 for i in study.held_out if len(study.corpus.texts[i].prompt)),
        "ids_without_document": split.num_missing,
    }


def tables(results: Sequence[Record]) -> list[Grid]:
    """The settings side by side: what drafts are worth, where they come from, and what they cost."""
    blocks = [_blocks(results)] if any("blocks" in record for record in results) else []
    return [_worth(results), *blocks, _origin(results), _cost(results)]


def setting_name(setting: Record) -> str:
    """A short name of a drafter with its sources: "dare own+global", "arctic"."""
    if setting["drafter"] != "dare":
        return str(setting["drafter"])
    name = "dare " + "+".join(setting["sources"])
    return f"{name} ({setting['scheme']})" if setting["scheme"] is not None else name


def _worth(results: Sequence[Record]) -> Grid:
    columns: list[tuple[str, Callable[[Record], str]]] = [
        ("tokens per step", lambda r: _form("{:.3f}", r["tokens_per_step"])),
        ("steps", lambda r: f"{r['steps']:,}"),
        ("drafted per step", lambda r: _form("{:.1f}", r["drafted_per_step"])),
        ("accepted", lambda r: _form("{:.0%}", r["acceptance_rate"])),
    ]
    return _table("What drafts are worth", results, columns)


def _blocks(results: Sequence[Record]) -> Grid:
    """Tokens per step of some blocks of documents, the later the farther apart: learning slows down."""
    settings = [record["setting"] for record in results]
    names = [f"{setting_name(setting)}, {setting['max_drafts']}" for setting in settings]
    last = len(results[0]["blocks"]) - 1
    rows = []
    for index in sorted({last, *(2**k - 1 for k in range(last.bit_length() + 1) if 2**k - 1 <= last)}):
        start = index * BLOCK_DOCUMENTS + 1
        end = min(start + BLOCK_DOCUMENTS - 1, results[0]["documents"])
        cells = [f"{record['blocks'][index]['tokens_per_step']:.3f}" for record in results]
        rows.append([f"{start:,}-{end:,}", *cells])
    return Grid("Tokens per step while learning", ["documents", *names], rows)


def _origin(results: Sequence[Record]) -> Grid:
    """How much of the text before it a draft was found by, and whose text the accepted tokens came from."""
    columns: list[tuple[str, Callable[[Record], str]]] = [
        ("match, median", lambda r: _form("{:.0f}", _within(r, "match_lengths", "median"))),
        ("mean", lambda r: _form("{:.1f}", _within(r, "match_lengths", "mean"))),
        *((f"from {name}", _share_of(name)) for name in _sources(results)),
    ]
    return _table("Where accepted tokens come from", results, columns)


def _cost(results: Sequence[Record]) -> Grid:
    columns: list[tuple[str, Callable[[Record], str]]] = [
        ("look-up µs, median", lambda r: _form("{:.0f}", _within(r, "lookup_microseconds", "median"))),
        ("p99", lambda r: _form("{:.0f}", _within(r, "lookup_microseconds", "p99"))),
        ("build, M tokens/s", lambda r: _form("{:.2g}", _built(r))),
        ("bytes a token", _bytes),
        (
            "calibration error",
            lambda r: _form("{:.3f}", _within(r, "reliability", "expected_calibration_error")),
        ),
    ]
    return _table("What drafts cost, and how reliable the predicted survival is", results, columns)


def _table(
    title: str, results: Sequence[Record], columns: Sequence[tuple[str, Callable[[Record], str]]]
) -> Grid:
    rows = []
    for record in results:
        setting = record["setting"]
        names = [setting_name(setting), _form("{:,}", setting["pool_documents"]), str(setting["max_drafts"])]
        rows.append([*names, *(cell(record) for _, cell in columns)])
    headings = ["drafter", "pool", "draft", *(heading for heading, _ in columns)]
    return Grid(title, headings, rows, num_names=3)


def _sources(results: Sequence[Record]) -> list[str]:
    """The sources that any accepted token came from, in the order in which they are counted."""
    shares = [record["accepted_by_source"] or {} for record in results]
    return [name for name in next(filter(None, shares), {}) if any(share.get(name) for share in shares)]


def _share_of(name: str) -> Callable[[Record], str]:
    return lambda record: _form("{:.0%}", _within(record, "accepted_by_source", name))


def _within(record: Record, name: str, key: str) -> Any:
    found = record[name]
    return None if found is None else found[key]


def _built(record: Record) -> float | None:
    pool = record["pool"]
    return None if pool is None else pool["build_tokens_per_second"] / 1e6


def _bytes(record: Record) -> str:
    """Mapped files and the process's own memory are not the same thing, so the cell says which."""
    pool = record["pool"]
    if pool is None or pool["bytes_per_token"] is None:
        return _MISSING
    return f"{pool['bytes_per_token']:.1f} {'on disk' if pool['disk_bytes'] is not None else 'in memory'}"


def _form(form: str, value: float | None) -> str:
    return _MISSING if value is None else form.format(value)
