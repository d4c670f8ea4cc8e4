"""Draws the dashboard's panels from a running Prometheus, where there is no Grafana:

    python -m tests.benchmarks.dashboard --prometheus http://127.0.0.1:9090 --minutes 10 --output panels.png

Prints the alerts that are pending or firing, too.
"""

import argparse
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "docker" / "grafana" / "dashboards" / "vllm-dare.json"
POINTS = 120
Curve = tuple[str, list[float], list[float]]  # its legend, minutes before now, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate-interval", default="1m", help="four times the scrape interval")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    seconds = arguments.minutes * 60
    for panel in panels:
        panel["curves"] = [
            curve
            for target in panel.get("targets", ())
            for curve in _curves(arguments.prometheus, target, seconds, arguments.rate_interval)
        ]
    draw(panels, arguments.output)
    for alert in _get(arguments.prometheus, "alerts")["alerts"]:
        print(f"{alert['state']}: {alert['labels']['alertname']}: {alert['annotations']['summary']}")


def _curves(address: str, target: dict[str, Any], seconds: float, interval: str) -> Iterator[Curve]:
    now = time.time()
    expression = target["expr"].replace("$__rate_interval", interval).replace("$instance", ".*")
    span = {"start": now - seconds, "end": now, "step": max(1.0, seconds / POINTS)}
    for series in _get(address, "query_range", query=expression, **span)["result"]:
        legend = target["legendFormat"]
        for name, value in series["metric"].items():
            legend = legend.replace("{{" + name + "}}", value)
        yield (
            legend,
            [(float(at) - now) / 60 for at, _ in series["values"]],
            [float(value) for _, value in series["values"]],
        )


def _get(address: str, what: str, **parameters: Any) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{address}/api/v1/{what}?{query}", timeout=30) as answer:
        return json.load(answer)["data"]


def draw(panels: list[dict[str, Any]], output: Path) -> None:
    """The panels where the dashboard has them; single numbers as text."""
    from matplotlib.figure import Figure

    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(18, height * 0.55))
    for panel in panels:
        place = panel["gridPos"]
        left, bottom = place["x"] / 24, 1 - (place["y"] + place["h"]) / height
        if panel["type"] == "row":
            figure.text(left + 0.01, bottom, panel["title"], fontsize=13, weight="bold")
            continue
        box = (left + 0.03, bottom + 1.3 / height, place["w"] / 24 - 0.045, (place["h"] - 2.3) / height)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], fontsize=10, loc="left")
        if panel["type"] == "stat":
            axes.axis("off")
            values = [curve[2][-1] for curve in panel["curves"]]
            axes.text(0, 0.3, f"{values[0]:,.4g}" if values else "no data", fontsize=18)
            continue
        _plot(axes, panel)
    figure.savefig(output, dpi=80)


def _plot(axes: Any, panel: dict[str, Any]) -> None:
    for legend, minutes, values in panel["curves"]:
        axes.plot(minutes, values, label=legend)
    limits = panel["fieldConfig"]["defaults"]
    drawn = [value for _, _, values in panel["curves"] for value in values if math.isfinite(value)]
    axes.set_ylim(bottom=limits.get("min"), top=limits.get("max") or max([*drawn, 0]) * 1.1 or 1)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    if panel["curves"]:
        axes.legend(fontsize=7, loc="lower left", ncols=3)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")


if __name__ == "__main__":
    main()
