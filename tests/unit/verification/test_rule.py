import math

import pytest
from pydantic import ValidationError

from vllm_dare.verification.rule import DEFAULT_PRESET, PRESETS, RuleLimits, VerificationConfig


def test_strict_is_the_default_and_naming_a_preset_relaxes() -> None:
    assert not VerificationConfig().relaxes
    assert VerificationConfig(preset="fast").relaxes
    assert not VerificationConfig(preset="fast", mode="strict").relaxes
    assert VerificationConfig(mode="relaxed").relaxes


def test_a_rule_begins_with_its_preset() -> None:
    assert VerificationConfig(mode="relaxed") == VerificationConfig(preset=DEFAULT_PRESET)
    for name, values in PRESETS.items():
        rule = VerificationConfig(preset=name).model_dump()
        assert {key: rule[key] for key in values} == dict(values)
    changed = VerificationConfig(preset="paper", top_k=5)
    assert (changed.top_k, changed.min_prob) == (5, 0.1)
    copied = VerificationConfig.model_validate(changed.model_dump())
    assert copied == changed


def test_the_papers_preset_is_the_papers_rule() -> None:
    assert VerificationConfig(preset="paper").model_dump(exclude={"mode", "preset"}) == {
        "top_k": 2,
        "min_prob": 0.1,
        "min_ratio": 0.0,
        "min_entropy": 0.0,
        "window": 0,
        "max_relaxed": None,
        "max_relaxed_per_100": None,
        "max_relaxed_in_row": None,
        "guard_stop_tokens": False,
        "never_relax": (),
        "protect": (),
        "wording_only": False,
        "drawn_drafts": True,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 0},
        {"min_prob": 1.0},
        {"min_prob": math.nan},
        {"min_ratio": 1.01},
        {"min_entropy": -0.1},
        {"window": -1},
        {"max_relaxed_in_row": -1},
        {"preset": "unknown"},
        {"mode": "lax"},
        {"never_relax": ("",)},
        {"protect": ("letters",)},
        {"topk": 3},
    ],
    ids=str,
)
def test_bad_rules_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VerificationConfig.model_validate(values)


def test_limits_bound_relaxed_rules_only() -> None:
    limits = RuleLimits(top_k=2, min_ratio=0.5, max_relaxed_per_100=20)
    inside = {"preset": "paper", "min_ratio": 0.5, "max_relaxed_per_100": 20}
    assert limits.exceeded(VerificationConfig(**inside)) == []
    assert limits.exceeded(VerificationConfig(**inside | {"top_k": 3})) == ["top_k"]
    assert limits.exceeded(VerificationConfig(**inside | {"top_k": None})) == ["top_k"]
    assert limits.exceeded(VerificationConfig(**inside | {"min_ratio": 0.4})) == ["min_ratio"]
    more = VerificationConfig(**inside | {"max_relaxed_per_100": 21})
    assert limits.exceeded(more) == ["max_relaxed_per_100"]
    assert limits.exceeded(VerificationConfig(preset="paper", mode="strict")) == []
    assert RuleLimits().exceeded(VerificationConfig(preset="fly")) == []
