"""What an evaluation found, as tables and as a Markdown report, both made from the result file."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_dare.evaluation.bench_provenance import origin_lines
from vllm_dare.evaluation.grid import Grid, markdown_table

Record = Mapping[str, Any]

_MISSING = "-"
_SHOWN_VALUES = 5  # of the attribute, in a terminal

# Name in the result file, name for people, how it is written.
TEXT = (
    ("length", "length", "{:.1f}"),
    ("length_ratio", "length ratio", "{:.3f}"),
    ("unfinished", "unfinished", "{:.1%}"),
    ("repeated_4grams", "repeated 4-grams", "{:.1%}"),
    ("shared_4grams", "shared 4-grams", "{:.1%}"),
    ("distinct_1", "distinct-1", "{:.3f}"),
    ("distinct_2", "distinct-2", "{:.3f}"),
    ("log_probability", "log-prob a token", "{:.3f}"),
    ("rouge_l", "ROUGE-L", "{:.3f}"),
    ("similarity", "similarity", "{:.3f}"),
)
CONTENT = (
    ("stated", "values stated", "{:.2f}"),
    ("agreement", "agreement", "{:.1%}"),
    ("jaccard", "Jaccard", "{:.3f}"),
    ("f1", "F1", "{:.3f}"),
    ("first_agreement", "same first value", "{:.1%}"),
    ("precision", "precision", "{:.1%}"),
    ("history_share", "history share", "{:.1%}"),
)
RANKING = (
    ("auc", "AUC", "{:.4f}"),
    ("user_auc", "AUC within users", "{:.4f}"),
    ("log_loss", "log-loss", "{:.4f}"),
)
SECTIONS = (("text", "Text", TEXT), ("content", "Content", CONTENT), ("ranking", "Ranking", RANKING))

METHOD = (
    "Every figure is a mean over documents (AUC and log-loss: over held-out interactions and seeds), with"
    " its 95 % bootstrap interval in brackets; *difference* is variant less baseline over the same "
    "documents, resampled in pairs. Documents are resampled, for the ranking users.",
    "*Repeated 4-grams* is the share of a text's 4-grams of words that came before in it; *shared "
    "4-grams* the share that another text of the variant has, too; *distinct-1* and *-2* are different "
    "words and pairs of words over all of them within a text. *Log-prob a token* is the mean log-"
    "probability of the text's tokens under the target model, after the prompt. *ROUGE-L* (F measure) and"
    " *similarity* (cosine of embeddings) compare with the baseline's text of the same id.",
    "A text states a value of the attribute if its words occur in it. *Agreement* is the share of values "
    "that both or neither of the two texts state, *Jaccard* and *F1* compare the sets of stated values, "
    "*same first value* the value named first. *Precision* is the share of stated values that are right: "
    "those whose share of the user's positive interactions is at least the share over all users. *History"
    " share* is the mean of the former over what is stated.",
    "*AUC* and *log-loss* are those of a click-through model (gradient-boosted trees) that sees the "
    "item's attributes, popularity and mean label, and how text and item go together; where whole users are "
    "held out, the embedded text, too (elsewhere it would stand for the user's id, whatever it says). *AUC "
    "within users* ranks each user's interactions among themselves. "
    "All variants have the same held-out interactions for a seed; item statistics come from the training "
    "part.",
    "A variant *holds* if every judged interval is within its limit, is *worse* if one is wholly beyond, "
    "and is otherwise *not shown* to hold: more documents may tell.",
)


def tables(result: Record) -> list[Grid]:
    """A table for each kind of figure, for the terminal."""
    made = [_section(result, key, title, figures) for key, title, figures in SECTIONS]
    return [table for table in made if table.rows] + _least_agreed(result)


def verdict_lines(result: Record) -> list[str]:
    """A sentence for each variant."""
    return [
        f"{variant['name']}: {variant['verdict']['word']} ({variant['verdict']['sentence']})."
        for variant in result["variants"]
        if variant["verdict"] is not None
    ]


def about_lines(result: Record) -> list[str]:
    """Which documents the figures are about."""
    line = f"{result['documents']:,} documents in {len(result['variants'])} variants"
    if result["interactions"] is not None:
        line += (
            f", {result['interactions']['rows']:,} interactions of {result['interactions']['users']:,} users"
        )
    lines = [f"{line}; embedding: {result['embedding']}."]
    if result["left_out"]:
        failed = ", ".join(f"{count} in {name}" for name, count in result["failed"].items() if count)
        lines.append(f"{result['left_out']:,} documents were left out, since they failed ({failed}).")
    return lines


def markdown(result: Record, plots: Sequence[str] = ()) -> str:
    """The whole report.

    Args:
        result: the result file's content.
        plots: paths of pictures, as they are to be linked.
    """
    names = [variant["name"] for variant in result["variants"]]
    parts = [f"# Does quality hold? {', '.join(names[1:])} against {names[0]}", *about_lines(result)]
    parts += ["## Verdict", "\n".join(f"- {line}" for line in verdict_lines(result))]
    for key, title, figures in SECTIONS:
        grid = _section(result, key, title, figures, repeat_names=True)
        if grid.rows:
            parts += [f"## {title}", markdown_table(grid)]
    if any(variant["attributes"] for variant in result["variants"]):
        parts += ["## Values of the attribute", markdown_table(_attributes(result))]
    parts += [f"![{path}]({path})" for path in plots]
    parts += ["## How it was measured", *METHOD]
    parts += ["## Settings", _settings(result), "## Where", _where(result["provenance"])]
    return "\n\n".join(parts) + "\n"


def interval(found: Record | None, form: str, *, signed: bool = False) -> str:
    """A figure with its interval: ``0.912 (0.901 to 0.923)``."""
    if found is None:
        return _MISSING
    if signed:
        form = form.replace("{:", "{:+")
    value, low, high = (form.format(found[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _section(
    result: Record,
    key: str,
    title: str,
    figures: Sequence[tuple[str, str, str]],
    repeat_names: bool = False,
) -> Grid:
    """A row for each figure and variant that has it."""
    rows, sections = [], []
    for name, label, form in figures:
        shown = f"{result['length_unit']}, mean" if name == "length" else label
        for variant in result["variants"]:
            found = (variant[key] or {}).get(name)
            if found is not None:
                difference = interval(found["difference"], form, signed=True)
                rows.append([shown, variant["name"], interval(found, form), difference])
                shown = shown if repeat_names else ""
        if rows:
            sections.append(len(rows) - 1)
    return Grid(
        title, ["figure", "variant", "value", "difference"], rows, num_names=2, left=(0, 1), sections=sections
    )


def _least_agreed(result: Record) -> list[Grid]:
    """The values on which any variant agrees the least, for the terminal; the report has all."""
    grid = _attributes(result)
    if not grid.rows:
        return []
    worst: dict[str, float] = {}
    for variant in result["variants"]:
        for record in variant["attributes"]:
            value = record["value"]
            worst[value] = min(worst.get(value, 1.0), record["agreement"]["value"])
    chosen = sorted(worst, key=worst.__getitem__)[:_SHOWN_VALUES]
    rows = sorted((row for row in grid.rows if row[0] in chosen), key=lambda row: chosen.index(row[0]))
    return [Grid("Values that variants agree on the least", grid.headings, rows, num_names=2, left=(0, 1))]


def _attributes(result: Record) -> Grid:
    rows = [
        [
            record["value"],
            variant["name"],
            f"{record['baseline_stated']:.0%} / {record['stated']:.0%}",
            interval(record["agreement"], "{:.1%}"),
            interval(record["kappa"], "{:.2f}"),
        ]
        for variant in result["variants"]
        for record in variant["attributes"]
    ]
    rows.sort(key=lambda row: row[0])
    headings = ["value", "variant", "stated by baseline / variant", "agreement", "kappa"]
    return Grid("Values", headings, rows, num_names=2, left=(0, 1))


def _settings(result: Record) -> str:
    lines = [f"- {variant['name']}: {variant['file']}" for variant in result["variants"]]
    for name, value in result["settings"].items():
        values = value.items() if isinstance(value, dict) else [(None, value)]
        lines += [
            f"- {name}{f', {part}' if part else ''}: {one}" for part, one in values if one not in (None, "")
        ]
    return "\n".join(lines)


def _where(origin: Record) -> str:
    machine = origin["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB",
        *origin_lines(origin),
    ]
    return "\n".join(f"- {line}" for line in lines)
