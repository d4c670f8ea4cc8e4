"""When quality holds."""

import pytest

from vllm_dare.evaluation.bootstrap import Estimate, Figure
from vllm_dare.evaluation.quality_verdict import Limits, judge


def _figure(low: float, high: float, difference: tuple[float, float] | None = None) -> Figure:
    own = Estimate((low + high) / 2, low, high, 10)
    if difference is None:
        return Figure(own)
    return Figure(own, Estimate(sum(difference) / 2, *difference, 10))


@pytest.mark.parametrize(
    ("name", "figure", "word"),
    [
        ("length_ratio", _figure(0.95, 1.05), "holds"),
        ("length_ratio", _figure(0.85, 0.95), "not shown"),
        ("length_ratio", _figure(0.70, 0.80), "worse"),
        ("length_ratio", _figure(1.20, 1.30), "worse"),
        ("unfinished", _figure(0, 0, (-0.2, 0.01)), "holds"),
        ("unfinished", _figure(0, 0, (0.0, 0.03)), "not shown"),
        ("unfinished", _figure(0, 0, (0.03, 0.05)), "worse"),
        ("precision", _figure(0, 0, (-0.01, 0.3)), "holds"),
        ("precision", _figure(0, 0, (-0.03, 0.01)), "not shown"),
        ("precision", _figure(0, 0, (-0.05, -0.03)), "worse"),
        ("auc", _figure(0, 0, (-0.001, 0.001)), "holds"),
        ("auc", _figure(0, 0, (-0.004, 0.004)), "not shown"),
        ("auc", _figure(0, 0, (-0.01, -0.004)), "worse"),
        ("agreement", _figure(0.1, 0.2), "holds"),
    ],
)
def test_an_interval_is_within_a_limit_beyond_it_or_neither(name: str, figure: Figure, word: str) -> None:
    verdict = judge({name: figure, "length_ratio": _figure(1, 1)} | {name: figure}, Limits())
    assert verdict.word == word
    for check in verdict.checks:
        assert (check.beyond > 0) == (check.word != "holds")


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.98, 0.99, "holds"), (0.9, 0.98, "not shown"), (0.8, 0.9, "worse")]
)
def test_agreement_is_judged_if_asked_for(low: float, high: float, word: str) -> None:
    assert judge({"agreement": _figure(low, high)}, Limits(min_agreement=0.97)).word == word


def test_the_sentence_says_what_is_wrong() -> None:
    figures = {
        "length_ratio": _figure(0.7, 0.8),
        "auc": _figure(0, 0, (-0.004, 0.004)),
        "precision": _figure(0, 0, (-0.07, -0.05)),
    }
    verdict = judge(figures, Limits())
    assert verdict.sentence == (
        "length changes by -30.0% to -20.0%, limit 10.0%; precision lower by 5.0% to 7.0%, limit 2.0%"
    )
    assert verdict.as_dict()["checks"][2]["sentence"] == "AUC may be lower by up to 0.0040, limit 0.0020"
    assert judge({"length_ratio": _figure(1, 1)}, Limits()).sentence == "length within the limits"
