"""Pictures of an evaluation: what is judged, with limits, and how far variants agree on each value."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dare.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]

_INCHES_A_VARIANT, _INCHES_A_VALUE, _PANEL_WIDTH = 0.32, 0.3, 3.1
_COLUMNS = 4
# Section, figure, whether its difference is drawn, label, name of its limit and the sign of what is allowed.
_PANELS = (
    ("text", "length_ratio", False, "length ratio", "length_change", 0),
    ("text", "unfinished", True, "unfinished, difference", "unfinished", 1),
    ("content", "agreement", False, "agreement", "min_agreement", None),
    ("content", "precision", True, "precision, difference", "precision_loss", -1),
    ("ranking", "auc", True, "AUC, difference", "auc_loss", -1),
    ("ranking", "user_auc", True, "AUC within users, difference", "auc_loss", -1),
    ("ranking", "log_loss", True, "log-loss, difference", None, None),
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
    variants = result["variants"][1:]
    written = [_differences(result, variants, directory / "differences.png")]
    if variants[0]["attributes"]:
        written.append(_values(variants, directory / "values.png"))
    return written


def _differences(result: Record, variants: Sequence[Record], path: Path) -> Path:
    """A panel for each figure, a line for each variant; what the limits allow is shaded."""
    panels = [panel for panel in _PANELS if _found(variants[0], panel) is not None]
    columns = min(len(panels), _COLUMNS)
    lines = -(-len(panels) // columns)
    height = _INCHES_A_VARIANT * len(variants) + 0.9
    figure = new_figure(_PANEL_WIDTH * columns + 0.8, height * lines)
    places = figure.subplots(lines, columns, squeeze=False)
    for axes in places.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(places.flat, panels, strict=False):
        for number, variant in enumerate(variants):
            _draw(axes, number, _found(variant, panel))
        _shade(axes, panel, result["settings"]["limits"])
        axes.set_xlabel(panel[3])
        axes.set_ylim(len(variants) - 0.5, -0.5)
        first = axes.get_subplotspec().is_first_col()
        axes.set_yticks(range(len(variants)), labels=[v["name"] if first else "" for v in variants])
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
    figure.savefig(path, dpi=150, format="png")
    return path


def _found(variant: Record, panel: tuple[Any, ...]) -> Record | None:
    section, name, is_difference, *_ = panel
    found = (variant[section] or {}).get(name)
    if found is not None and is_difference:
        found = found["difference"]
    return found


def _draw(axes: "Axes", number: int, found: Record | None, height: float | None = None) -> None:
    if found is None:
        return
    axes.errorbar(
        found["value"],
        number if height is None else height,
        # a value outside its percentile interval is possible, and is not a negative bar
        xerr=[[max(0, found["value"] - found["low"])], [max(0, found["high"] - found["value"])]],
        fmt="o",
        color=f"C{number}",
        markersize=4,
        capsize=3,
    )


def _shade(axes: "Axes", panel: tuple[Any, ...], limits: Record) -> None:
    *_, limit_name, sign = panel
    limit = limits[limit_name] if limit_name else None
    neutral = 1.0 if panel[1] in ("length_ratio", "agreement") else 0.0
    axes.axvline(neutral, color="grey", linewidth=0.8)
    if limit is None:
        return
    low, high = axes.get_xlim()
    if limit_name == "min_agreement":
        low, high = min(low, limit), max(high, 1.0)
        axes.axvspan(limit, high, color="C2", alpha=0.12, linewidth=0)
    elif sign == 0:
        low, high = min(low, neutral - 1.2 * limit), max(high, neutral + 1.2 * limit)
        axes.axvspan(neutral - limit, neutral + limit, color="C2", alpha=0.12, linewidth=0)
    elif sign > 0:
        low, high = min(low, -limit), max(high, 1.2 * limit)
        axes.axvspan(low, limit, color="C2", alpha=0.12, linewidth=0)
    else:
        low, high = min(low, -1.2 * limit), max(high, limit)
        axes.axvspan(-limit, high, color="C2", alpha=0.12, linewidth=0)
    axes.set_xlim(low, high)


def _values(variants: Sequence[Record], path: Path) -> Path:
    """Agreement on each value, those that are agreed on the least at the top."""
    worst = {
        record["value"]: min(
            other["agreement"]["value"]
            for variant in variants
            for other in variant["attributes"]
            if other["value"] == record["value"]
        )
        for record in variants[0]["attributes"]
    }
    order = sorted(worst, key=worst.__getitem__)[:40]  # more would not be legible
    figure = new_figure(7.0, _INCHES_A_VALUE * len(order) + 1.2)
    axes = figure.subplots()
    for number, variant in enumerate(variants):
        aside = 0.5 * ((number + 0.5) / len(variants) - 0.5)
        for record in variant["attributes"]:
            if record["value"] in order:
                _draw(axes, number, record["agreement"], order.index(record["value"]) + aside)
        axes.plot([], [], "o", color=f"C{number}", markersize=4, label=variant["name"])
    axes.set_yticks(range(len(order)), labels=order)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel("documents in which both or neither state it")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=150, format="png")
    return path
