from pathlib import Path

import pytest

from vllm_dare.config import DareConfig
from vllm_dare.errors import ConfigError


def test_defaults_are_strict_and_without_a_pool() -> None:
    config = DareConfig.from_additional_config({})
    assert config.pool is None
    assert config.verification.mode == "strict"
    assert config.draft_budget == "auto"
    assert config.live is None
    assert config == DareConfig.from_additional_config(None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pol": "x"}, r"Unknown setting dare\.pol; known settings are pool, "),
        ({"verification": {"topk": 2}}, r"Unknown setting dare\.verification\.topk; .*top_k"),
        ({"verification": {"mode": "lax"}}, r"Bad value 'lax' for the setting dare\.verification\.mode"),
        ({"verification": {"top_k": 0}}, r"dare\.verification\.top_k"),
        ({"verification": {"min_prob": 1.0}}, r"dare\.verification\.min_prob"),
        ({"verification": {"min_ratio": 1.5}}, r"dare\.verification\.min_ratio"),
        ({"verification": {"preset": "lax"}}, r"dare\.verification\.preset: .*presets are paper, content"),
        ({"verification": {"max_relaxed": -1}}, r"dare\.verification\.max_relaxed"),
        ({"verification": {"never_relax": [""]}}, r"dare\.verification\.never_relax"),
        ({"limits": {"max_k": 3}}, r"Unknown setting dare\.limits\.max_k; .*top_k"),
        ({"limits": {"presets": ["lax"]}}, r"dare\.limits\.presets: .*presets are paper"),
        ({"pool": 3}, r"dare\.pool"),
        (
            {"draft_budget": "most"},
            r"Bad value 'most' for the setting dare\.draft_budget: .*'auto' or 'fixed'",
        ),
        ({"live": {}}, r"dare\.live needs dare\.pool, the directory to learn into"),
        (
            {"pool": "p", "live": {"tokens": 1}},
            r"Unknown setting dare\.live\.tokens; .* max_tokens, learn_relaxed",
        ),
        ({"pool": "p", "live": {"max_tokens": 10}}, r"dare\.live\.max_tokens: .* 4096"),
        ("pool/", r"must be a dictionary"),
    ],
)
def test_bad_settings_are_one_sentence(settings: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        DareConfig.from_additional_config({"dare": settings})
    assert "\n" not in str(caught.value)


def test_a_pool_is_a_directory_or_a_url() -> None:
    def pool(value: str) -> object:
        return DareConfig.from_additional_config({"dare": {"pool": value}}).pool

    assert pool("some/pool") == Path("some/pool")
    assert pool("s3://bucket/pool") == "s3://bucket/pool"
    assert pool("file:///mnt/pool") == "file:///mnt/pool"
