"""What a bench found, as tables and as a Markdown report; both are made from the result file's content."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vllm_dare.evaluation.bench_provenance import origin_lines
from vllm_dare.evaluation.grid import Grid, markdown_table

Record = Mapping[str, Any]

METHOD = (
    "Each arm ran in an engine of its own, one engine at a time, in a process of its own (`strict` and "
    "`relaxed` share one); engine start is not counted. Every other repeat ran everything in the opposite "
    "order. As many requests were in flight as the column *in flight* says: whenever a text was whole, "
    "the next prompt was sent. Before each cell came a short warm-up; then the prefix cache was emptied, "
    "and vLLM's suffix decoding, which learns from what it serves, was set back to the pool's documents, "
    "which it was given at the start so that it knows what DARE knows.",
    "Figures are medians over the repeats; in brackets are the least and the greatest. *Speed-up* is "
    "output tokens a second as a multiple of the arm `none` in the same repeat, so that shorter texts do "
    "not look like speed. *Tokens per step* are output tokens for each run of the target model for a "
    "request. *Look-up* is the share of the worker's step time that went into drafting, and that time for "
    "a request and step. *Mean tokens* is the mean length of a text ± its standard error over the "
    "prompts. *Same texts* and *same start* compare with `none`: the share of identical texts, and of "
    "tokens before the first difference. *Peak GiB* is the peak resident memory of the engine's "
    "processes, added up: what they share counts in each of them, and mapped files, such as a DARE pool, "
    "count as far as they were read.",
)
SEEDED = (
    "Each sampled request had a seed of its own, the same in every repeat; DARE's draft budget leaves such "
    "requests alone."
)
UNSEEDED = "Sampled requests had no seeds: their texts differ from repeat to repeat and from arm to arm."
CPU_NOTE = (
    "On CPU, vLLM's sampled speculation reads uninitialised temperatures and its seeded requests can end "
    "the engine: all arms, vLLM's own too, ran with the mends of both that are part of vllm-dare."
)
SETTINGS = {
    "none": "vLLM's defaults",
    "ngram": "vLLM's ngram, its defaults",
    "suffix": "vLLM's suffix decoding (ArcticInference), its defaults",
    "strict": "DARE, strict verification",
    "relaxed": "DARE, relaxed verification",
}


@dataclass(frozen=True)
class Column:
    """A column of the result table: its heading, and what it says of a summary record.

    Those that are not ``brief`` are in the report alone: a terminal is not so wide.
    """

    heading: str
    cell: Callable[[Record], str]
    brief: bool = False


def _number(name: str, form: str, *, factor: float = 1.0) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        found = record[name]
        return "-" if found is None else form.format(found["median"] * factor)

    return cell


def _with_spread(name: str, form: str) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        found = record[name]
        if found is None:
            return "-"
        median, low, high = (form.format(found[key]) for key in ("median", "low", "high"))
        return f"{median}x" if low == high else f"{median}x ({low}-{high})"

    return cell


def _length(record: Record) -> str:
    mean, error = record["mean_tokens"], record["mean_tokens_error"]
    if mean is None:
        return "-"
    return f"{mean['median']:.1f}" + ("" if error is None else f" ± {error['median']:.1f}")


def _seconds(record: Record) -> str:
    return f"{record['document_seconds']['median']:.2f} / {record['document_seconds_p99']['median']:.2f}"


def _memory(record: Record) -> str:
    peak = record["peak_bytes"]
    return "-" if peak is None else f"{peak / 2**30:.2f}"


COLUMNS = (
    Column("in flight", lambda record: str(record["concurrency"]), brief=True),
    Column("arm", lambda record: record["arm"], brief=True),
    Column("speed-up", _with_spread("speed_up", "{:.2f}"), brief=True),
    Column("tokens/s", _number("tokens_per_second", "{:.0f}"), brief=True),
    Column("documents/s", _number("documents_per_second", "{:.2f}")),
    Column("s/document, p99", _seconds, brief=True),
    Column("tokens per step", _number("tokens_per_step", "{:.2f}"), brief=True),
    Column("drafted per step", _number("drafted_per_step", "{:.2f}")),
    Column("accepted", _number("acceptance", "{:.0%}"), brief=True),
    Column("look-up", _number("look_up_share", "{:.1%}"), brief=True),
    Column("look-up, µs", _number("look_up_microseconds", "{:.0f}")),
    Column("mean tokens", _length, brief=True),
    Column("same texts", _number("same_texts", "{:.0%}"), brief=True),
    Column("same start", _number("same_leading_tokens", "{:.0%}")),
    Column("peak GiB", _memory),
)


def records_at(result: Record, temperature: float) -> list[Record]:
    """The summary's records of one temperature, by concurrency, arms in the order of the settings."""
    found = [record for record in result["summary"] if record["temperature"] == temperature]
    return sorted(found, key=lambda record: record["concurrency"])


def tables(result: Record) -> list[Grid]:
    """A table for each temperature that has figures, for the terminal."""
    brief = [column for column in COLUMNS if column.brief]
    made = []
    for temperature in result["settings"]["temperatures"]:
        if not (records := records_at(result, temperature)):
            continue
        counts = [record["concurrency"] for record in records]
        made.append(
            Grid(
                _title(temperature),
                [column.heading for column in brief],
                [[column.cell(record) for column in brief] for record in records],
                num_names=2,
                left=[1],
                sections=[i for i, pair in enumerate(pairwise(counts)) if len(set(pair)) > 1],
            )
        )
    return made


def failure_lines(result: Record) -> list[str]:
    """A sentence for each arm that has no figures, or not all of them."""
    return [f"{arm}: {reason}" for arm, reason in result["failures"].items()]


def markdown(result: Record, plots: Sequence[str] = ()) -> str:
    """The whole report.

    Args:
        result: the result file's content.
        plots: paths of pictures, as they are to be linked.
    """
    settings = result["settings"]
    parts = [f"# Bench: {settings['model']}", _status(result)]
    for temperature in settings["temperatures"]:
        if records := records_at(result, temperature):
            parts += [f"## {_title(temperature)}", _markdown_table(records)]
    if result["failures"]:
        parts += ["## Without figures", "\n".join(f"- {line}" for line in failure_lines(result))]
    parts += [f"![{path}]({path})" for path in plots]
    parts += ["## How it was measured", *METHOD, UNSEEDED if settings["seed"] is None else SEEDED]
    if _device(result) == "cpu":
        parts.append(CPU_NOTE)
    parts += ["## Settings", _settings(settings), "## Where", _where(result)]
    return "\n\n".join(parts) + "\n"


def _title(temperature: float) -> str:
    return "Greedy" if temperature == 0 else f"Temperature {temperature:g}"


def _status(result: Record) -> str:
    settings = result["settings"]
    repeats = settings["repeats"]
    text = f"{settings['limit']} prompts, {repeats} repeat{'s' if repeats > 1 else ''}."
    return text if result["status"] == "complete" else f"{text} **Not complete: {result['status']}.**"


def _markdown_table(records: Sequence[Record]) -> str:
    headings = [column.heading for column in COLUMNS]
    rows = [[column.cell(record) for column in COLUMNS] for record in records]
    return markdown_table(Grid("", headings, rows, left=(headings.index("arm"),)))


def _settings(settings: Record) -> str:
    lines = []
    for arm in settings["arms"]:
        rule, _, fixed = arm.partition("@")
        method, _, preset = rule.partition(":")
        about = SETTINGS[method] + (f", preset {preset}" if preset else "")
        if fixed:
            about += f", always {fixed} draft tokens"
        elif method != "none":
            about += f", at most {settings['draft']} draft tokens"
        lines.append(f"- `{arm}`: {about}")
    shown = {name: value for name, value in settings.items() if name not in ("arms", "draft", "engine_args")}
    lines += [f"- {name}: {value}" for name, value in shown.items() if value is not None]
    lines += [f"- vllm.LLM, {name}: {value}" for name, value in settings["engine_args"].items()]
    return "\n".join(lines)


def _where(result: Record) -> str:
    where = result["provenance"]
    machine = where["machine"]
    lines = [
        f"device: {_device(result) or 'unknown'}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, load average {machine['load_average']} at the start",
        *origin_lines(where),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _device(result: Record) -> str | None:
    return next((engine["device"] for engine in result["engines"] if "device" in engine), None)
