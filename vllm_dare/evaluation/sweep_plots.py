"""Pictures of a sweep: speed against agreement, and against the AUC that is lost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dare.evaluation.sweep_report import frontier
from vllm_dare.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]

_INCHES = (7.5, 4.8)


def write_plots(result: Record, directory: Path) -> list[Path]:
    """Write the pictures that there are figures for, as PNG.

    Args:
        result: the content of a sweep's result file, see `sweep_report.with_speed`.
        directory: where to; made if it is not there.

    Returns:
        the files written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    limits = result["settings"]["limits"]
    kinds = (
        ("speed_agreement.png", _agreement, "agreement on stated values", 1.0, limits["min_agreement"]),
        ("speed_auc.png", _auc, "AUC, difference to the baseline", 0.0, -limits["auc_loss"]),
    )
    written = []
    for name, find, label, baseline, limit in kinds:
        points = [
            (variant["name"], variant["speed"]["speed_up"], find(variant))
            for variant in result["variants"][1:]
            if variant["speed"]["speed_up"] is not None and find(variant) is not None
        ]
        if points:
            _plot(directory / name, points, label, baseline, limit)
            written.append(directory / name)
    return written


def _agreement(variant: Record) -> Record | None:
    found: Record | None = variant["content"].get("agreement")
    return found


def _auc(variant: Record) -> Record | None:
    found: Record | None = variant["ranking"] and variant["ranking"]["auc"]["difference"]
    return found


def _plot(
    path: Path, points: Sequence[tuple[str, float, Any]], label: str, baseline: float, limit: float | None
) -> None:
    figure = new_figure(*_INCHES)
    axes = figure.subplots()
    everything = [("plain", 1.0, None), *points]
    places = [(x, baseline if found is None else found["value"]) for _, x, found in everything]
    best = [places[i] for i in frontier(places)]
    axes.plot(*zip(*best, strict=True), color="grey", linestyle="--", linewidth=1, label="frontier", zorder=0)
    for number, (name, x, found) in enumerate(everything):
        _point(axes, number, name, (x, places[number][1]), found)
    if limit is not None:
        axes.axhline(limit, color="C2", linestyle=":", label="limit")
    axes.set_xlabel("speed-up over plain vLLM, tokens a second")
    axes.set_ylabel(label)
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    # names stand beside the axes: points can lie on each other, and labels beside them would, too
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=150, format="png")


def _point(axes: "Axes", number: int, name: str, place: tuple[float, float], found: Any) -> None:
    x, y = place
    bars = None
    if found is not None:
        bars = [[max(0, y - found["low"])], [max(0, found["high"] - y)]]
    marker = "osD^vP*X"[number % 8]
    axes.errorbar(x, y, yerr=bars, fmt=marker, color=f"C{number % 10}", markersize=6, capsize=3, label=name)
