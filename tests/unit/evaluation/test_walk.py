"""Walking a text: steps counted by hand, and against brute force."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.evaluation.walk import Chain, Step, Text, Tokens, walk


class Scripted:
    """A drafter that proposes what it was told to, and remembers what it was asked."""

    def __init__(self, chains: Sequence[Sequence[int]]) -> None:
        self.chains = list(chains)
        self.written: list[int] = []
        self.limits: list[int] = []

    def extend(self, tokens: Tokens) -> None:
        self.written += tokens.tolist()

    def draft(self, limit: int) -> list[int]:
        self.limits.append(limit)
        self.drafted = list(self.chains.pop(0)[:limit])
        return self.drafted

    def chain(self) -> Chain:
        return Chain(np.array(self.drafted, np.int32))

    def close(self) -> None:
        pass


def text(output: Sequence[int], max_tokens: int | None = None) -> Text:
    return Text("t", np.array(output, np.int32), max_tokens=max_tokens)


def counts(steps: Sequence[Step]) -> list[tuple[int, int]]:
    return [(step.accepted, step.written) for step in steps]


def test_the_first_step_writes_one_token_and_drafts_nothing() -> None:
    session = Scripted([])
    steps = list(walk(session, text([7]), 4))
    assert counts(steps) == [(0, 1)] and steps[0].chain is None
    assert session.limits == []


def test_a_step_writes_the_accepted_tokens_and_one_more() -> None:
    session = Scripted([[2, 3, 9], [6], [9, 9], []])
    steps = list(walk(session, text([1, 2, 3, 4, 5, 6, 7]), 4))
    # 1 | 2 3 and 4 | 5 instead of 6 | 6 instead of 9 | 7
    assert counts(steps) == [(0, 1), (2, 3), (0, 1), (0, 1), (0, 1)]
    assert session.written == [1, 2, 3, 4, 5, 6, 7]


def test_no_chain_gives_plain_decoding() -> None:
    steps = list(walk(Scripted([[]] * 9), text(range(10)), 4))
    assert counts(steps) == [(0, 1)] * 10


def test_a_chain_that_goes_beyond_the_text_is_judged_up_to_its_end() -> None:
    steps = list(walk(Scripted([[2, 3, 4, 5]]), text([1, 2, 3]), 4))
    assert counts(steps) == [(0, 1), (2, 2)]
    assert steps[1].judged == 2


def test_what_comes_right_after_a_wrong_token_does_not_count() -> None:
    steps = list(walk(Scripted([[9, 3], [3, 4]]), text([1, 2, 3, 4]), 4))
    assert counts(steps) == [(0, 1), (0, 1), (2, 2)]


def test_where_the_engine_would_stop_chains_are_one_shorter_than_what_is_left() -> None:
    session = Scripted([[2, 3, 4, 5], [6, 7]])
    steps = list(walk(session, text([1, 2, 3, 4, 5, 6], max_tokens=6), 4))
    assert session.limits == [4]  # after five more tokens nothing is left
    assert counts(steps) == [(0, 1), (4, 5)]
    session = Scripted([[2], [4]])
    list(walk(session, text([1, 2, 3, 4], max_tokens=4), 8))
    assert session.limits == [2]  # and none is asked for where only the target's own token fits
    assert session.chains == [[4]]


def test_the_time_of_a_look_up_is_taken() -> None:
    steps = list(walk(Scripted([[2]]), text([1, 2, 3]), 4))
    assert steps[0].nanoseconds == 0 and steps[1].nanoseconds > 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 5), st.data())
def test_steps_against_brute_force(output: list[int], max_drafts: int, data: st.DataObject) -> None:
    chains = [data.draw(st.lists(st.integers(0, 2), max_size=max_drafts)) for _ in range(len(output) - 1)]
    session = Scripted(chains)
    steps = list(walk(session, text(output), max_drafts))
    position, expected = 1, [1]
    for chain in chains:
        if position >= len(output):
            break
        right = 0
        for drafted, token in zip(chain, output[position:], strict=False):
            if drafted != token:
                break
            right += 1
        expected.append(min(right + 1, len(output) - position))
        position += right + 1
    assert [step.written for step in steps] == expected
    assert session.written == output
