import numpy as np
import pytest
from pydantic import ValidationError

pytest.importorskip("torch")

from vllm_dare.verification.policy import DIGIT, JSON, LINE_END, QUOTE, TURN
from vllm_dare.verification.request_rule import RequestRule
from vllm_dare.verification.rule import VerificationConfig
from vllm_dare.verification.token_guards import TokenGuards

TEXTS = ["a", " 19", '"', '{"', '""', ".\n", "“", " Drama", "Dr", "ama", "MelDrama"]


def guards() -> TokenGuards:
    words = {"Drama": [8, 9], " Drama": [7]}
    return TokenGuards(12, lambda: TEXTS, lambda text: words.get(text, []))


def test_kinds_of_tokens() -> None:
    every = guards()
    every.prepare(VerificationConfig(protect=("digits",)))
    assert every.kinds.tolist() == [
        0, DIGIT, QUOTE | TURN | JSON, QUOTE | TURN | JSON, QUOTE | JSON, LINE_END, QUOTE | TURN,
        0, 0, 0, 0, 0,
    ]  # fmt: skip


def test_texts_are_read_only_when_a_rule_asks() -> None:
    def fail() -> list[str]:
        raise AssertionError("not needed")

    lazy = TokenGuards(12, fail, lambda _: [])
    assert lazy.prepare(VerificationConfig(never_relax=(5, 3, 5))) == (3, 5)
    assert len(lazy.kinds) == 0


def test_a_string_means_the_tokens_it_is_written_with_and_those_that_contain_it() -> None:
    assert guards().prepare(VerificationConfig(never_relax=("Drama", 1))) == (1, 7, 8, 9, 10)


def test_where_nobody_knows_what_is_wording_a_rule_that_asks_is_strict() -> None:
    rule, other = VerificationConfig(mode="relaxed", wording_only=True), VerificationConfig(preset="paper")
    assert not guards().applicable(rule).relaxes
    assert guards().applicable(other) is other
    strict = VerificationConfig()
    assert guards().applicable(strict) is strict  # nothing is changed, so that nobody is told of it
    knowing = TokenGuards(12, lambda: TEXTS, lambda _: [], np.zeros(0, np.uint64))
    assert knowing.applicable(rule) is rule


def test_a_pool_that_does_not_know_the_wording_takes_none_away() -> None:
    rule, pivots = VerificationConfig(mode="relaxed", wording_only=True), np.array([3, 5], np.uint64)
    every = guards()
    assert len(every.pivots) == 0
    for known in (pivots, None, pivots[:1], None):
        every.learn_wording(known)
        assert every.applicable(rule).relaxes == (known is not None)
        if known is not None:
            expected = known
        assert np.array_equal(every.pivots, expected)


def test_an_open_quotation_is_followed_through_the_output() -> None:
    every = guards()
    rule = VerificationConfig(mode="relaxed", protect=("quoted",))
    every.prepare(rule)
    written: list[int] = []
    request = RequestRule(rule, output=lambda: written)
    seen = []
    for token in (0, 2, 7, 4, 7, 6, 0, 2, 5, 0):
        written.append(token)
        seen.append(request.quoted(every.kinds))
    assert seen == [0, 1, 1, 1, 1, 0, 0, 1, 0, 0]
    del written[3:]  # taken back, as after a failed step
    assert request.quoted(every.kinds) == 1
    assert RequestRule(VerificationConfig(mode="relaxed"), output=lambda: written).quoted(every.kinds) == 0


def test_of_the_lists_that_requests_make_up_only_the_latest_are_remembered() -> None:
    every = guards()
    operators = VerificationConfig(never_relax=("Drama", 1))
    for number in range(200):
        assert every.prepare(VerificationConfig(never_relax=(number, 3))) == tuple(sorted({number, 3}))
        assert every.prepare(operators) == (1, 7, 8, 9, 10)
    assert len(every._ids) <= 64
    assert operators.never_relax in every._ids


@pytest.mark.parametrize("token", [2**31, 2**63, 2**64, 10**400, -1])
def test_token_ids_that_kernels_cannot_hold_are_refused(token: int) -> None:
    with pytest.raises(ValidationError, match="token ids from 0"):
        VerificationConfig(never_relax=(token,))


@pytest.mark.parametrize("field", ["top_k", "window", "max_relaxed", "max_relaxed_in_row"])
def test_bounds_that_kernels_cannot_hold_are_refused(field: str) -> None:
    largest = VerificationConfig.model_validate({"preset": "fast", field: 2**31 - 1})
    assert np.isfinite(RequestRule(largest).row).sum() > 0
    for value in (2**31, 10**400):
        with pytest.raises(ValidationError, match="less than or equal"):
            VerificationConfig.model_validate({"preset": "fast", field: value})
