"""Pictures of a bench: speed-up and tokens per step against the number of requests in flight."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dare.evaluation.bench_report import records_at
from vllm_dare.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]

_PANEL_INCHES, _LEGEND_INCHES = (5.0, 3.8), 1.2
_ASIDE = 1.02  # neighbouring arms stand so much apart, so that bars do not hide each other
_PLOTS = (
    ("speed_up", "speed-up over no speculation", "speedup.png"),
    ("tokens_per_step", "output tokens per step", "tokens_per_step.png"),
)


def write_plots(result: Record, directory: Path) -> list[Path]:
    """Write the pictures that there are figures for, as PNG.

    Args:
        result: the result file's content.
        directory: where to; made if it is not there.

    Returns:
        the files written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, label, file in _PLOTS:
        if any(record[name] is not None for record in result["summary"]):
            _plot(result, name, label, directory / file)
            written.append(directory / file)
    return written


def _plot(result: Record, name: str, label: str, path: Path) -> None:
    temperatures = [t for t in result["settings"]["temperatures"] if records_at(result, t)]
    width, height = _PANEL_INCHES
    figure = new_figure(width * len(temperatures) + _LEGEND_INCHES, height)
    panels = figure.subplots(1, len(temperatures), squeeze=False)[0]
    for axes, temperature in zip(panels, temperatures, strict=True):
        _draw(axes, result, temperature, name)
        axes.set_title("greedy" if temperature == 0 else f"temperature {temperature:g}")
        axes.set_xlabel("requests in flight")
    panels[0].set_ylabel(label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150, format="png")


def _draw(axes: "Axes", result: Record, temperature: float, name: str) -> None:
    """A line for each arm, in the same colour in every panel; bars from the least repeat to the greatest."""
    records = [record for record in records_at(result, temperature) if record[name] is not None]
    for number, arm in enumerate(result["settings"]["arms"]):
        mine = [record for record in records if record["arm"] == arm]
        if not mine:
            continue
        medians = [record[name]["median"] for record in mine]
        below = [record[name]["median"] - record[name]["low"] for record in mine]
        above = [record[name]["high"] - record[name]["median"] for record in mine]
        axes.errorbar(
            [record["concurrency"] * _ASIDE**number for record in mine],
            medians,
            yerr=(below, above),
            label=arm,
            color=f"C{number}",
            marker="o",
            markersize=4,
            capsize=3,
        )
    counts = result["settings"]["concurrencies"]
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
