"""Which arms are asked for, which engines they need, and in which order they run."""

from pathlib import Path

import pytest

from vllm_dare.errors import DareError
from vllm_dare.evaluation.bench_arms import Arm, engines_of, in_turns, parse_arms
from vllm_dare.generation.settings import EngineSettings

NONE, NGRAM, SUFFIX = Arm("none"), Arm("ngram"), Arm("suffix")
STRICT, RELAXED, STRICT_4 = Arm("strict"), Arm("relaxed"), Arm("strict", 4)


def test_arms_are_parsed_once_each() -> None:
    assert parse_arms(["none", "strict", "strict@4", "strict"], [16]) == [NONE, STRICT, STRICT_4]


def test_relaxed_arms_may_name_a_preset() -> None:
    arms = parse_arms(["relaxed", "relaxed:fast", "relaxed:paper@4"], [16])
    assert arms == [RELAXED, Arm("relaxed", preset="fast"), Arm("relaxed", 4, "paper")]
    assert [arm.name for arm in arms] == ["relaxed", "relaxed:fast", "relaxed:paper@4"]
    assert [arm.engine for arm in arms] == ["dare", "dare", "dare@4"]
    assert arms[1].request_keys == {"dare_verification": "relaxed", "dare_preset": "fast"}


def test_several_draft_lengths_are_arms_of_their_own() -> None:
    names = [arm.name for arm in parse_arms(["none", "ngram", "strict", "relaxed@2"], [16, 4])]
    assert names == ["none", "ngram", "strict", "strict@4", "strict@16", "relaxed@2"]


@pytest.mark.parametrize(
    ("names", "drafts", "sentence"),
    [
        (["eagle"], [16], "There is no arm 'eagle': --arms takes none, ngram, suffix, strict, relaxed"),
        ([""], [16], "There is no arm ''"),
        (["relaxed:lax"], [16], "There is no arm 'relaxed:lax': relaxed takes the presets paper, content"),
        (["strict:fast"], [16], "There is no arm 'strict:fast'"),
        (["ngram@4"], [16], "'ngram@4' cannot have a fixed draft length"),
        (["strict@"], [16], "needs a whole number after the @"),
        (["strict@200"], [16], "'strict@200' drafts 200 tokens, but vLLM verifies between 1 and 128"),
        (["none"], [129], "--draft drafts 129 tokens"),
        (["none"], [16, 0], "--draft drafts 0 tokens"),
    ],
)
def test_arms_that_cannot_be(names: list[str], drafts: list[int], sentence: str) -> None:
    with pytest.raises(DareError, match=sentence):
        parse_arms(names, drafts)


def test_the_longest_draft_is_vllms() -> None:
    from vllm.v1.sample.rejection_sampler import MAX_SPEC_LEN

    assert parse_arms([f"strict@{MAX_SPEC_LEN}"], [16])
    with pytest.raises(DareError):
        parse_arms([f"strict@{MAX_SPEC_LEN + 1}"], [16])


def test_strict_and_relaxed_share_an_engine() -> None:
    arms = [NONE, STRICT, STRICT_4, RELAXED, Arm("relaxed", 4)]
    assert engines_of(arms) == [(NONE,), (STRICT, RELAXED), (STRICT_4, Arm("relaxed", 4))]


def test_every_other_repeat_goes_backwards() -> None:
    engines = [(NONE,), (NGRAM,), (STRICT, RELAXED)]
    assert list(in_turns(engines, 3)) == [
        (1, (NONE,)),
        (1, (NGRAM,)),
        (1, (STRICT, RELAXED)),
        (2, (RELAXED, STRICT)),
        (2, (NGRAM,)),
        (2, (NONE,)),
        (3, (NONE,)),
        (3, (NGRAM,)),
        (3, (STRICT, RELAXED)),
    ]


def test_each_engine_gets_its_own_way_of_drafting(tmp_path: Path) -> None:
    common = EngineSettings("m", pool=tmp_path, max_num_seqs=8, dtype="float32")
    none, ngram, suffix, strict, fixed = (
        arm.llm_args(common, 16, 12345) for arm in (NONE, NGRAM, SUFFIX, STRICT, STRICT_4)
    )
    assert "speculative_config" not in none and "additional_config" not in none
    assert ngram["speculative_config"] == {"method": "ngram", "num_speculative_tokens": 16}
    assert suffix["speculative_config"] == {
        "method": "suffix",
        "num_speculative_tokens": 16,
        "suffix_decoding_max_cached_requests": 12345,
    }
    assert strict["speculative_config"]["num_speculative_tokens"] == 16
    assert "draft_budget" not in strict["additional_config"]["dare"]
    assert fixed["speculative_config"]["num_speculative_tokens"] == 4
    assert fixed["additional_config"]["dare"]["draft_budget"] == "fixed"
    for arguments in (none, ngram, suffix, strict, fixed):
        assert (arguments["max_num_seqs"], arguments["dtype"]) == (8, "float32")


def test_relaxed_is_chosen_by_the_request() -> None:
    assert RELAXED.request_keys == {"dare_verification": "relaxed"}
    assert STRICT_4.request_keys == {"dare_verification": "strict"}
    assert NGRAM.request_keys == {}
