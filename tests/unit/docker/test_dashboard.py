import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[3] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "vllm-dare.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Every query, with Grafana's variables filled in as Grafana would."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$instance", "a:8000|b:8000")


def test_every_panel_says_what_it_shows() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]


def test_no_variable_is_unknown() -> None:
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__all"} <= known


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_queries_name_metrics_that_exist(
    shown_names: set[str], metric_names: Callable[[str], set[str]]
) -> None:
    for expression in expressions():
        names = metric_names(expression)
        assert names, expression
        assert names <= shown_names, expression


def test_all_of_ours_is_on_it() -> None:
    """A metric that nobody looks at was not worth counting; segment files are for `pool info`."""
    from vllm_dare.engine.metrics_file import METRICS

    text = " ".join(expressions())
    missing = {metric.name for metric in METRICS if f"vllm_dare_{metric.name}" not in text}
    assert missing <= {"pool_segments"}


def test_queries_parse(promtool: Callable[..., str], tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_provisioning_finds_it() -> None:
    def read(name: str) -> Any:
        return yaml.safe_load((DOCKER / "grafana" / "provisioning" / name).read_text())

    assert read("datasources/prometheus.yaml")["datasources"][0]["isDefault"] is True
    folder = read("dashboards/vllm-dare.yaml")["providers"][0]["options"]["path"]
    volumes = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{folder}:ro" in volumes
