"""Pictures of a replay: tokens per step, survival against position, reliability of the predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dare.evaluation.order import BLOCK_DOCUMENTS
from vllm_dare.evaluation.replay_report import setting_name
from vllm_dare.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]

_INCHES = (7.0, 4.6)


def write_plots(results: Sequence[Record], directory: Path) -> list[Path]:
    """Write the pictures that there are figures for, as PNG.

    Args:
        results: the settings' records, as in the result file.
        directory: where to; made if it is not there.

    Returns:
        the files written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    predicted = [record for record in results if record["reliability"] is not None]
    if any("blocks" in record for record in results):
        written.append(_save(directory / "learning.png", results, _draw_learning))
    if any(record["setting"]["pool_documents"] for record in results):
        written.append(_save(directory / "tokens_per_step.png", results, _draw_pool_sizes))
    if any(record["steps"] for record in results):
        written.append(_save(directory / "survival.png", results, _draw_survival))
    if predicted:
        written.append(_save(directory / "reliability.png", predicted, _draw_reliability))
    return written


def _save(path: Path, records: Sequence[Record], draw: Any) -> Path:
    figure = new_figure(*_INCHES)
    axes = figure.subplots()
    draw(axes, records)
    axes.grid(alpha=0.3)
    # beside the axes: there can be many settings, and no corner that is sure to be free
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=150, format="png")
    return path


def _draw_pool_sizes(axes: "Axes", records: Sequence[Record]) -> None:
    """A line for each drafter; what needs no pool is a dashed level."""
    sizes = sorted({r["setting"]["pool_documents"] for r in records if r["setting"]["pool_documents"]})
    lines: dict[str, list[Record]] = {}
    for record in records:
        lines.setdefault(_name(record, records), []).append(record)
    for number, (name, members) in enumerate(lines.items()):
        if members[0]["setting"]["pool_documents"] is None:
            level = members[0]["tokens_per_step"]
            axes.axhline(level, color=f"C{number}", linestyle="--", label=name)
            continue
        points = sorted(
            (record["setting"]["pool_documents"], record["tokens_per_step"]) for record in members
        )
        axes.plot(
            *zip(*points, strict=True),
            color=f"C{number}",
            marker="o",
            markersize=4,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
    axes.minorticks_off()
    if len(sizes) == 1:  # a single point needs room on both sides
        axes.set_xlim(sizes[0] / 2, sizes[0] * 2)
    axes.set_ylim(bottom=1)
    axes.set_xlabel("documents in the pool")
    axes.set_ylabel("output tokens per step")


def _draw_learning(axes: "Axes", records: Sequence[Record]) -> None:
    """A line for each setting, a point for each block of documents."""
    for number, record in enumerate(records):
        blocks = record["blocks"]
        axes.plot(
            [block["from"] for block in blocks],
            [block["tokens_per_step"] for block in blocks],
            color=f"C{number}",
            marker="o",
            markersize=3,
            label=_name(record, records),
        )
    axes.set_ylim(bottom=1)
    axes.set_xlim(left=-5, right=max(record["blocks"][-1]["from"] for record in records) + BLOCK_DOCUMENTS)
    axes.set_xlabel(f"documents written before (a point is for the next {BLOCK_DOCUMENTS}, or what is left)")
    axes.set_ylabel("output tokens per step")


def _draw_survival(axes: "Axes", records: Sequence[Record]) -> None:
    """Of the chains that are so long, how many were right that far; dots are what the drafter predicted."""
    for number, record in enumerate(_widest(records)):
        observed = [v for v in record["observed_survival_by_position"] if v is not None]
        axes.plot(
            range(1, len(observed) + 1), observed, color=f"C{number}", label=_name(record, _widest(records))
        )
        predicted = [v for v in record["predicted_survival_by_position"] or () if v is not None]
        axes.plot(range(1, len(predicted) + 1), predicted, "o", color=f"C{number}", markersize=2.5)
    axes.plot([], [], "o", color="grey", markersize=2.5, label="dots: predicted")
    _name_pool(axes, records)
    axes.set_ylim(0, 1)
    axes.set_xlabel("position in the chain")
    axes.set_ylabel("share of drafts right up to here")


def _draw_reliability(axes: "Axes", records: Sequence[Record]) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="as predicted")
    for number, record in enumerate(_widest(records)):
        bins = record["reliability"]["bins"]
        error = record["reliability"]["expected_calibration_error"]
        axes.plot(
            [found["predicted"] for found in bins],
            [found["observed"] for found in bins],
            color=f"C{number}",
            marker="o",
            markersize=4,
            label=f"{_name(record, _widest(records))}\n(calibration error {error:.3f})",
        )
    _name_pool(axes, records)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("predicted survival of a draft token")
    axes.set_ylabel("share that was accepted")


def _widest(records: Sequence[Record]) -> list[Record]:
    """The records of the largest pool, and those without one: a line for each pool would hide the rest."""
    largest = max((r["setting"]["pool_documents"] or 0 for r in records), default=0)
    return [r for r in records if r["setting"]["pool_documents"] in (None, largest)]


def _name_pool(axes: "Axes", records: Sequence[Record]) -> None:
    """Where there are pools of several sizes, say which one is drawn."""
    sizes = {r["setting"]["pool_documents"] for r in records if r["setting"]["pool_documents"]}
    if len(sizes) > 1:
        axes.set_title(f"pool of {max(sizes):,} documents", fontsize="medium")


def _name(record: Record, among: Sequence[Record]) -> str:
    """What tells a line from the others."""
    name = setting_name(record["setting"])
    if len({other["setting"]["max_drafts"] for other in among}) > 1:
        name += f", drafts of {record['setting']['max_drafts']}"
    return name
