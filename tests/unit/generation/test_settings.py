"""Which engine is started, and which settings a part file is tied to."""

from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import ConfigError
from vllm_dare.generation.settings import EngineSettings, SamplingSettings, text_settings
from vllm_dare.verification.rule import DEFAULT_PRESET


def test_the_engine_gets_the_proposer_and_the_pool(tmp_path: Path) -> None:
    settings = EngineSettings("m", pool=tmp_path, verification="relaxed", draft_tokens=8, dtype="float32")
    assert settings.llm_args() == {
        "model": "m",
        "disable_log_stats": False,
        "dtype": "float32",
        "speculative_config": {
            "method": "custom_class",
            "model": "vllm_dare.DareProposer",
            "num_speculative_tokens": 8,
        },
        "additional_config": {"dare": {"verification": {"mode": "relaxed"}, "pool": str(tmp_path)}},
        "per_request_spec_decode_metrics": "summary",
    }


def test_a_store_stays_a_url() -> None:
    settings = EngineSettings("m", pool="s3://bucket/pool")
    assert settings.llm_args()["additional_config"]["dare"]["pool"] == "s3://bucket/pool"


def test_a_run_may_learn(tmp_path: Path) -> None:
    settings = EngineSettings("m", pool=tmp_path, learn=True)
    assert settings.llm_args()["additional_config"]["dare"]["live"] == {}


def test_a_run_that_learns_mixes_into_the_worker_itself(tmp_path: Path) -> None:
    own = {"worker_extension_cls": "mine.Worker"}
    with pytest.raises(ConfigError, match="worker_extension_cls"):
        EngineSettings("m", pool=tmp_path, learn=True, engine_args=own)
    assert EngineSettings("m", pool=tmp_path, engine_args=own).llm_args()["worker_extension_cls"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"draft_tokens": 4}, "--learn needs --pool"), ({"pool": Path("p"), "draft_tokens": 0}, "--no-drafts")],
)
def test_learning_needs_a_pool_and_drafts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineSettings("m", learn=True, **settings)


def test_plain_vllm_has_no_trace_of_drafts() -> None:
    settings = EngineSettings("m", draft_tokens=0, engine_args={"enforce_eager": True})
    assert settings.llm_args() == {"model": "m", "disable_log_stats": False, "enforce_eager": True}


@pytest.mark.parametrize("name", ["speculative_config", "additional_config", "model", "disable_log_stats"])
def test_engine_args_may_not_undo_what_the_run_sets(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineSettings("m", engine_args={name: {}})


def test_a_strict_run_may_go_on_with_another_pool() -> None:
    sampling = SamplingSettings()
    one = text_settings(EngineSettings("m", pool=Path("a")), sampling, token_ids=False)
    two = text_settings(EngineSettings("m", pool=Path("b"), draft_tokens=4), sampling, token_ids=False)
    none = text_settings(
        EngineSettings("m", draft_tokens=0, verification="relaxed"), sampling, token_ids=False
    )
    learning = text_settings(EngineSettings("m", Path("a"), learn=True), sampling, token_ids=False)
    assert one == two == none == learning


def test_a_relaxed_run_is_tied_to_its_drafts() -> None:
    sampling = SamplingSettings()
    settings = [
        text_settings(EngineSettings("m", Path(pool), "relaxed", tokens), sampling, token_ids=False)
        for pool, tokens in (("a", 16), ("b", 16), ("a", 8))
    ]
    assert settings[0] != settings[1] and settings[0] != settings[2]
    learning = EngineSettings("m", Path("a"), "relaxed", 16, learn=True)
    assert settings[0] != text_settings(learning, sampling, token_ids=False)


def test_a_preset_says_how_much_is_relaxed(tmp_path: Path) -> None:
    settings = EngineSettings("m", pool=tmp_path, verification="relaxed", preset="fast")
    dare = settings.llm_args()["additional_config"]["dare"]
    assert dare["verification"] == {"mode": "relaxed", "preset": "fast"}
    default = EngineSettings("m", pool=tmp_path, verification="relaxed")
    texts = [text_settings(one, SamplingSettings(), token_ids=False) for one in (settings, default)]
    assert [text["preset"] for text in texts] == ["fast", DEFAULT_PRESET]
    with pytest.raises(ConfigError, match="no preset 'lax' for --preset; there are paper, content"):
        EngineSettings("m", verification="relaxed", preset="lax")
    with pytest.raises(ConfigError, match="--preset needs --verification relaxed"):
        EngineSettings("m", preset="fast")
