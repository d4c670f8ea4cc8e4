"""A sweep: what it asks for, what it does again, and which setting it names; engines are stood in for."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.evaluation.conftest import Tastes
from vllm_dare.cli.app import main
from vllm_dare.errors import DareError
from vllm_dare.evaluation import sweep_engine
from vllm_dare.evaluation.sweep import Setting, Sweep, check, generate, parse_settings
from vllm_dare.evaluation.sweep_report import choose, frontier
from vllm_dare.generation.settings import EngineSettings, SamplingSettings


def test_settings_are_what_requests_carry() -> None:
    found = parse_settings("strict, careful,top_k=3,min_prob=0.05,plain,top_k=2;top_k=4")
    assert [(setting.name, dict(setting.keys)) for setting in found] == [
        ("plain", {}),
        ("strict", {"dare_verification": "strict"}),
        ("careful", {"dare_verification": "relaxed", "dare_preset": "careful"}),
        ("top_k=3,min_prob=0.05", {"dare_verification": "relaxed", "dare_top_k": 3, "dare_min_prob": 0.05}),
        ("plain again", {}),
        ("top_k=2", {"dare_verification": "relaxed", "dare_top_k": 2}),
        ("top_k=4", {"dare_verification": "relaxed", "dare_top_k": 4}),
    ]
    assert [setting.is_plain for setting in found] == [True, False, False, False, True, False, False]
    assert found[3].file_name == "top_k=3_min_prob=0.05.jsonl"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no setting"),
        ("strict,strict", "has strict twice"),
        ("magic", "--settings, magic: .*presets are"),
        ("top_k=0", "--settings, top_k=0: Bad value 0"),
        ("colour=3", "Unknown request key dare_colour"),
    ],
)
def test_settings_that_do_not_exist(text: str, sentence: str) -> None:
    with pytest.raises(DareError, match=sentence) as error:
        parse_settings(text)
    assert "\n" not in str(error.value)


class Engines:
    """Stands in for `sweep_engine.measure`: writes what the prompt says, faster the longer a setting's name.

    Attributes:
        started: for each engine, its pool and the settings that it ran.
    """

    def __init__(self, texts: dict[str, str], shuffled: str = "") -> None:
        self.started: list[tuple[bool, list[str]]] = []
        ids = list(texts)
        self._texts = texts
        self._others = dict(zip(ids, np.roll(list(texts.values()), 1).tolist(), strict=True))
        self._shuffled = shuffled

    def __call__(self, engine: EngineSettings, settings: Sequence[Setting], rows: Any, *more: Any) -> None:
        self.started.append((engine.draft_tokens > 0, [setting.name for setting in settings]))
        for setting in settings:
            texts = self._others if setting.name == self._shuffled else self._texts
            found = [
                {"id": row.id, "text": texts[row.id], "completion_tokens": 9, "finish_reason": "stop"}
                for row in rows
            ]
            speed = float(len(setting.name))
            figures = {"tokens_per_second": speed, "seconds_per_document": 9 / speed, "tokens_per_step": 1.5}
            more[-1](setting, found, figures)


@pytest.fixture
def sweep(tastes: Tastes, tmp_path: Path) -> Sweep:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": i, "prompt": "?"}) + "\n" for i in tastes.texts))
    settings = parse_settings("strict,careful")
    engine = EngineSettings("some/model")
    return Sweep(prompts, 1000, engine, SamplingSettings(), settings, 4, tmp_path / "out")


def test_what_is_finished_is_not_generated_again(sweep: Sweep, tastes: Tastes) -> None:
    sweep, engines = check(sweep), Engines(tastes.texts)
    assert sweep.limit == 80
    found = generate(sweep, engines)
    assert engines.started == [(False, ["plain"]), (True, ["strict", "careful"])]
    assert found["careful"]["tokens_per_second"] == 7.0
    assert len((sweep.output / "strict.jsonl").read_text().splitlines()) == 80

    (sweep.output / "strict.figures.json").unlink()
    more = check(replace(sweep, settings=[*sweep.settings, *parse_settings("fast")[1:]]))
    assert list(generate(more, engines)) == ["plain", "strict", "careful", "fast"]
    assert engines.started[2:] == [(True, ["strict", "fast"])]
    generate(more, engines)
    assert len(engines.started) == 3


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sampling": SamplingSettings(temperature=0.7)}, "sampling"),
        ({"engine": EngineSettings("other/model")}, "model"),
        ({"concurrency": 2}, "concurrency"),
    ],
)
def test_texts_of_other_settings_are_not_taken(
    sweep: Sweep, tastes: Tastes, change: dict[str, Any], what: str
) -> None:
    generate(check(sweep), Engines(tastes.texts))
    with pytest.raises(DareError, match=f"was generated with another {what}; remove it, or"):
        check(replace(sweep, **change))
    (sweep.output / "plain.figures.json").write_text("{")
    with pytest.raises(DareError, match="is not what a sweep wrote"):
        check(sweep)


def _variant(name: str, word: str, speed: float, excess: float = 0.0) -> dict[str, Any]:
    checks = [{"excess": -1.0}, {"excess": excess}]
    verdict = {"word": word, "sentence": f"{name} is so", "checks": checks}
    return {"name": name, "verdict": verdict, "speed": {"speed_up": speed}}


def test_the_fastest_that_holds_is_chosen() -> None:
    variants = [_variant("a", "holds", 2.0), _variant("b", "holds", 3.0), _variant("c", "worse", 9.0)]
    found = choose(variants)
    assert (found["fastest"], found["closest"]) == ("b", None)
    assert found["sentence"].endswith("is b, 3.00 times as fast as the baseline.")


def test_or_it_is_said_which_comes_closest() -> None:
    found = choose([_variant("a", "worse", 2.0, 3.0), _variant("b", "not shown", 1.5, 0.5)])
    assert (found["fastest"], found["closest"]) == (None, "b")
    assert "No setting is shown to be within the limits; b, 1.50 times" in found["sentence"]
    assert found["sentence"].endswith("comes closest: b is so.")


def test_the_frontier_is_what_nobody_beats() -> None:
    points = np.random.default_rng(0).integers(8, size=(40, 2)).astype(float).tolist()
    found = frontier([(x, y) for x, y in points])
    for i, (x, y) in enumerate(points):
        beaten = any((a >= x and b > y) or (a > x and b >= y) for a, b in points)
        assert (i in found) != beaten
    assert [points[i] for i in found] == sorted(points[i] for i in found)


def test_a_sweep_from_prompts_to_reports(
    tastes: Tastes,
    sweep: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines = Engines(tastes.texts, shuffled="careful")
    monkeypatch.setattr(sweep_engine, "measurer", lambda console: engines)
    monkeypatch.setattr("vllm_dare.evaluation.quality._scores", lambda *arguments: None)
    command = ["--sweep", "--model", "some/model", "--prompts", str(sweep.prompts), "--seeds", "1"]
    command += ["--settings", "strict,careful", "--output", str(tmp_path / "out"), *tastes.options]
    command += ["--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots")]
    command += ["--markdown", str(tmp_path / "report.md")]
    monkeypatch.setattr(sys, "argv", ["vllm-dare", "evaluate", *command])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["choice"]["fastest"] == "strict"
    assert [variant["speed"]["speed_up"] for variant in result["variants"]] == [1.0, 6 / 5, 7 / 5]
    words = [variant["verdict"] and variant["verdict"]["word"] for variant in result["variants"]]
    assert words == [None, "holds", "worse"]
    sentence = "The fastest setting within the limits is strict, 1.20 times as fast as the baseline."
    assert sentence in capsys.readouterr().out
    report = (tmp_path / "report.md").read_text()
    assert sentence in report and "| careful | 1.40x | 1.286 | 1.50 |" in report
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "plots").iterdir()}
    assert set(pictures) == {"speed_agreement.png", "speed_auc.png", "differences.png", "values.png"}
    assert min(pictures.values()) > 10_000
    assert "(plots/speed_auc.png)" in report


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sweep"], "--sweep needs --model, --prompts, --settings, --output, too."),
        (["a=b", "--sweep"], "leave out NAME=FILE, or --sweep"),
    ],
)
def test_a_sweep_that_lacks_something(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm-dare", "evaluate", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert sentence in capsys.readouterr().err
