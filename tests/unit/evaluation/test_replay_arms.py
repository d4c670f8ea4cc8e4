"""Replaying texts with this package's drafter and with peers."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.drafting.drafter import Drafter, Origin
from vllm_dare.errors import DareError
from vllm_dare.evaluation import peers
from vllm_dare.evaluation.peers import ARCTIC_SETTINGS, ArcticArm, ArcticTree, NgramArm, longest_ngram
from vllm_dare.evaluation.replay import DareArm, replay
from vllm_dare.evaluation.walk import Arm, Text

needs_arctic = pytest.mark.skipif(
    importlib.util.find_spec("arctic_inference") is None, reason="arctic-inference is not installed"
)

PHRASE = [5, 6, 7, 8, 9, 10, 11, 12]


def text(output: Sequence[int], prompt: Sequence[int] = ()) -> Text:
    return Text("t", np.array(output, np.int32), np.array(prompt, np.int32))


def test_own_text_drafts_what_is_repeated() -> None:
    (result,) = replay([text(PHRASE * 4)], [DareArm(Drafter(None, 8, 100))])
    assert result.tally.tokens == 32
    assert result.tokens_per_step > 1.5
    figures = result.tally.figures()
    assert figures["accepted_by_source"]["own"] == 1.0
    assert figures["documents"] == 1


def test_a_prompt_drafts_too_but_not_before_the_first_token() -> None:
    arm = DareArm(Drafter(None, 8, 100))
    without, with_prompt = replay([text(PHRASE)], [arm])[0], replay([text(PHRASE, PHRASE)], [arm])[0]
    assert without.tally.steps == 8
    assert 2 <= with_prompt.tally.steps < 5


def test_each_text_counts_by_itself() -> None:
    arm = DareArm(Drafter(None, 8, 100))
    (result,) = replay([text(PHRASE), text(PHRASE)], [arm])
    assert result.tokens_per_step == 1.0  # the second does not draft from the first


def test_an_end_token_is_drafted_when_the_arm_says_so(make_corpus: Callable[..., Any], tmp_path: Any) -> None:
    from vllm_dare.evaluation.study import _build
    from vllm_dare.pool.pool import RetrievalPool

    corpus = make_corpus({str(i): PHRASE for i in range(4)})
    _build(corpus, ("own", "global"), list(corpus.texts.values()), tmp_path / "pool")
    with RetrievalPool.open(tmp_path / "pool") as pool:
        drafter = Drafter(pool, 16, 100)
        ended = text([*PHRASE, 99])
        assert replay([ended], [DareArm(drafter)])[0].tally.accepted == 7
        assert replay([ended], [DareArm(drafter, end_token=99)])[0].tally.accepted == 8


def test_progress_is_told_after_each_text() -> None:
    told: list[None] = []
    replay([text([1]), text([2])], [NgramArm(4), NgramArm(2)], lambda: told.append(None))
    assert len(told) == 4


@needs_arctic
def test_arctic_forgets_held_out_texts_unless_it_learns() -> None:
    for learns in (False, True):
        arm: Arm = ArcticArm(ArcticTree([]), ARCTIC_SETTINGS[0], 8, learns=learns)
        first, second = (replay([text(PHRASE)], [arm])[0].tally.steps for _ in range(2))
        assert first == 8
        assert (second < 8) == learns


@needs_arctic
def test_arctic_drafts_from_its_documents_and_from_prompts() -> None:
    tree = ArcticTree([np.array(PHRASE, np.int32)])
    assert tree.resident_bytes is None or tree.resident_bytes >= 0
    (result,) = replay([text(PHRASE)], [ArcticArm(tree, ARCTIC_SETTINGS[0], 8)])
    assert result.tally.steps <= 3
    assert result.tally.reliability() is not None
    (result,) = replay([text(PHRASE, PHRASE)], [ArcticArm(ArcticTree([]), ARCTIC_SETTINGS[0], 8)])
    assert result.tally.steps <= 3


def test_a_peer_that_is_not_installed_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DareError, match=r"needs the package arctic-inference; run `pip install"):
        ArcticTree([])


def test_ngrams_count_as_own_text() -> None:
    (result,) = replay([text(PHRASE * 3)], [NgramArm(8)])
    assert result.tally.drafted_from[Origin.OWN] == result.tally.drafted > 0


def _longest_ngram(tokens: list[int], shortest: int, longest: int) -> tuple[int, int]:
    for length in range(longest, shortest - 1, -1):
        for end in range(length, len(tokens)):
            if tokens[end - length : end] == tokens[len(tokens) - length :]:
                return end, length
    return len(tokens), 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_ngrams_against_brute_force(tokens: list[int]) -> None:
    assert longest_ngram(np.array(tokens, np.int32), len(tokens), 2, 5) == _longest_ngram(tokens, 2, 5)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_ngrams_are_those_of_vllm(tokens: list[int], limit: int) -> None:
    ngram_proposer = pytest.importorskip("vllm.v1.spec_decode.ngram_proposer")
    text = np.array(tokens, np.int32)
    expected = ngram_proposer._find_longest_matched_ngram_and_propose_tokens(text, 2, 5, 10**6, limit)
    start, _ = longest_ngram(text, len(text), 2, 5)
    assert text[start : start + limit].tolist() == expected.tolist()
