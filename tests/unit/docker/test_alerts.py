from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[3] / "docker"
RULES = [
    rule for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
HOUR, DAY = 60, 1440  # minutes
ENGINE = '{job="vllm-dare", instance="a:8000", engine="0"}'


@dataclass(frozen=True)
class Case:
    """Hours or days of a server, and what must be firing at their end.

    Attributes:
        name: what happens.
        minutes: how long.
        series: name, without the labels of every series, to promtool's notation of a value each interval.
        firing: the alerts.
        interval: minutes between values.
    """

    name: str
    minutes: int
    series: dict[str, str]
    firing: tuple[str, ...] = ()
    interval: int = 1


def labelled(name: str) -> str:
    """A series of the one engine; `name` may have labels of its own."""
    base, _, own = name.rstrip("}").partition("{")
    return base + ENGINE[:-1] + (f", {own}" if own else "") + "}"


HEALTHY = {
    "up": "1x2000",
    "vllm:num_requests_running": "4x2000",
    "vllm:generation_tokens_total": "0+1000x2000",
    "vllm:iteration_tokens_total_count": "0+300x2000",
    "vllm_dare_drafts_total": "0+200x2000",
    'vllm_dare_draft_tokens_total{source="group"}': "0+1600x2000",
    'vllm_dare_accepted_tokens_total{source="group"}': "0+700x2000",
    'vllm_dare_accepted_tokens_per_position_total{position="0"}': "0+180x2000",
    'vllm_dare_errors_total{kind="draft"}': "0x2000",
    "vllm_dare_resting_steps_total": "0+30x2000",
    'vllm_dare_look_up_seconds_bucket{le="0.001"}': "0+300x2000",
    'vllm_dare_look_up_seconds_bucket{le="0.1"}': "0+300x2000",
    'vllm_dare_look_up_seconds_bucket{le="+Inf"}': "0+300x2000",
    "vllm_dare_pool_created_timestamp_seconds": "0x2000",  # promtool's time begins at 0
    "vllm_dare_live_tokens": "0x2000",
    "vllm_dare_live_evicted_tokens_total": "0x2000",
}
ABSENT = {name: "_x2000" for name in HEALTHY if name.startswith("vllm_dare_")}
IDLE = {name: f"{values.split('+')[0]}x2000" for name, values in HEALTHY.items() if "+" in values} | {
    "vllm:num_requests_running": "0x2000"
}
OLD_POOL = {"vllm_dare_pool_created_timestamp_seconds": "1x2000"}

CASES = (
    Case("all is well", DAY, {}, interval=5),
    Case("nobody asks", DAY, IDLE, interval=5),
    Case("the server is gone", HOUR, {"up": "1x10 0x100"}, ("DareServerDown",)),
    Case("the plugin is not there", HOUR, ABSENT, ("DareMetricsAbsent",)),
    Case(
        "nothing is accepted any more",
        HOUR,
        {
            'vllm_dare_accepted_tokens_total{source="group"}': "0+700x10 7000x1000",
            'vllm_dare_accepted_tokens_per_position_total{position="0"}': "0+180x10 1800x1000",
        },
        ("DareNothingAccepted",),
    ),
    Case(
        "less is accepted than yesterday",
        DAY,
        {'vllm_dare_accepted_tokens_per_position_total{position="0"}': "0+180x268 48240+100x300"},
        ("DareAcceptanceDropped",),
        interval=5,
    ),
    Case(
        "somewhat less is accepted than yesterday",
        DAY,
        {'vllm_dare_accepted_tokens_per_position_total{position="0"}': "0+180x268 48240+160x300"},
        interval=5,
    ),
    Case(
        "drafting fails",
        HOUR,
        {'vllm_dare_errors_total{kind="draft"}': "0x55 1x100"},
        ("DareErrors",),
    ),
    Case("drafting failed an hour ago", HOUR, {'vllm_dare_errors_total{kind="draft"}': "0x10 1x100"}),
    Case(
        "learned text is soon forgotten",
        3 * HOUR,
        {"vllm_dare_live_tokens": "10000x2000", "vllm_dare_live_evicted_tokens_total": "0+40x2000"},
        ("DareLiveTextShortLived",),
    ),
    Case(
        "learned text stays for a day",
        3 * HOUR,
        {"vllm_dare_live_tokens": "10000x2000", "vllm_dare_live_evicted_tokens_total": "0+7x2000"},
    ),
    Case(
        "look-ups take long",
        HOUR,
        {'vllm_dare_look_up_seconds_bucket{le="0.001"}': "0+200x2000"},
        ("DareLookUpSlow",),
    ),
    Case(
        "drafts never pay",
        2 * HOUR,
        {"vllm_dare_resting_steps_total": "0+299x2000"},
        ("DareBudgetRests",),
    ),
    Case("drafts seldom pay", 2 * HOUR, {"vllm_dare_resting_steps_total": "0+270x2000"}),
)
OLD = (
    Case("the pool is old", 31 * DAY, OLD_POOL, ("DarePoolOld",), interval=30),
    Case("the pool is new", 29 * DAY, OLD_POOL, interval=30),
    Case(
        "the pool is old, but the engine learns",
        31 * DAY,
        OLD_POOL | {"vllm_dare_live_tokens": "5x2000"},
        interval=30,
    ),
    Case("there is no pool", 31 * DAY, {"vllm_dare_pool_created_timestamp_seconds": "0x2000"}, interval=30),
)


def write_test(case: Case, series: dict[str, str], folder: Path) -> Path:
    """A file for `promtool test rules`."""
    fired = "count by (alertname) (ALERTS{alertstate='firing'})"
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in case.firing]
    test = {
        "interval": f"{case.interval}m",
        "input_series": [{"series": labelled(name), "values": value} for name, value in series.items()],
        "promql_expr_test": [{"expr": fired, "eval_time": f"{case.minutes}m", "exp_samples": expected}],
    }
    content = {
        "rule_files": [str(DOCKER / "alerts.yml")],
        "evaluation_interval": f"{case.interval}m",
        "tests": [test],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_fires(case: Case, promtool: Callable[..., str], tmp_path: Path) -> None:
    promtool("test", "rules", write_test(case, HEALTHY | case.series, tmp_path))


@pytest.mark.parametrize("case", OLD, ids=lambda case: case.name)
def test_the_age_of_the_pool(case: Case, promtool: Callable[..., str], tmp_path: Path) -> None:
    """Over weeks, and so without the other series."""
    promtool("test", "rules", write_test(case, case.series, tmp_path))


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    assert {name for case in (*CASES, *OLD) for name in case.firing} == {rule["alert"] for rule in RULES}


def test_the_files_are_valid(promtool: Callable[..., str]) -> None:
    promtool("check", "config", DOCKER / "prometheus.yml")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rules_name_metrics_that_exist(
    rule: dict[str, str], shown_names: set[str], metric_names: Callable[[str], set[str]]
) -> None:
    names = metric_names(rule["expr"])
    assert names <= shown_names
    assert names or rule["expr"].startswith("up{")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_operations_says_what_to_do(rule: dict[str, str]) -> None:
    assert f"`{rule['alert']}`" in (DOCKER.parent / "docs" / "operations.md").read_text()


def test_prometheus_asks_the_job_that_the_rules_look_at() -> None:
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in config["scrape_configs"]] == ["vllm-dare"]
