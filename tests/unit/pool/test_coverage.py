"""The choice of passages: against brute force, and within its budget."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.pool import coverage
from vllm_dare.pool.coverage import Passage, choose_passages

LENGTHS, SHARES = coverage._LENGTHS.tolist(), coverage._SHARES.tolist()
SLOTS = 2**16

token_lists = st.lists(st.integers(0, 3), min_size=1, max_size=9)
may_be_empty = st.lists(st.integers(0, 3), max_size=9)


def arrays(documents: list[list[int]]) -> list[np.ndarray]:
    return [np.array(document, np.int32) for document in documents]


def ngrams(tokens: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def flat(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    return np.array([token for document in documents for token in document], np.int32), starts


def slots_of(document: list[int], tags: np.ndarray) -> np.ndarray:
    slots = np.empty((len(document) + 1, len(LENGTHS)), np.int64)
    hashes = np.empty(len(document) + 1, np.uint64)
    coverage._find_slots(np.array(document, np.int32), coverage._powers(), tags, hashes, slots)
    return slots


@settings(max_examples=50)
@given(st.lists(token_lists, min_size=1, max_size=4))
def test_ngrams_are_counted_in_other_documents(documents: list[list[int]]) -> None:
    tags = np.zeros(SLOTS, np.uint32)
    others = coverage._count_others(*flat(documents), tags)
    for document in documents:
        for slots, end in zip(slots_of(document, tags), range(1, len(document) + 1), strict=False):
            for k, n in enumerate(LENGTHS):
                if n > end:
                    assert slots[k] == -1
                    continue
                found = sum(tuple(document[end - n : end]) in ngrams(other, n) for other in documents)
                assert others[slots[k]] == found - 1


def net_value(
    chosen: list[bool],
    have: list[bool],
    slots: np.ndarray,
    others: np.ndarray,
    copies: np.ndarray,
    price: float,
) -> float:
    """What is new in the choice, less its price."""
    value, run, before = 0.0, 0, 0
    for i, taken in enumerate(chosen):
        run = run + 1 if taken else 0
        before = before + 1 if have[i] else 0
        value -= price * (taken and not have[i]) * (1.0 if run > 1 else 1.0 + coverage._BEGIN_COST)
        for k, n in enumerate(LENGTHS):
            if before < n <= run:
                value += (
                    SHARES[k]
                    * coverage._WORTH[others[slots[i, k]]]
                    * coverage._DISCOUNT ** int(copies[slots[i, k]])
                )
    return value


@settings(max_examples=60)
@given(st.lists(token_lists, min_size=2, max_size=4), st.floats(0.1, 30), st.data())
def test_a_document_keeps_what_is_best_at_a_price(
    documents: list[list[int]], price: float, data: st.DataObject
) -> None:
    tags = np.zeros(SLOTS, np.uint32)
    others = coverage._count_others(*flat(documents), tags)
    document = documents[0]
    slots = slots_of(document, tags)
    size = len(document)
    have = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    copies = np.zeros(SLOTS, np.uint8)
    none = np.zeros(size, np.bool_)
    coverage._count_copies(none, np.array(have), slots, copies)
    came_from = np.empty((size + 1, LENGTHS[-1] + 1), np.int8)
    chosen = np.zeros(size + 1, np.bool_)
    number = coverage._best_passages(price, np.array(have), slots, others, copies, came_from, chosen)
    found = chosen[:size].tolist() if number else have
    assert number == sum(found) - sum(have)
    assert all(now for now, before in zip(found, have, strict=True) if before)
    best = max(
        net_value(list(choice), have, slots, others, copies, price)
        for choice in product([False, True], repeat=size)
        if all(taken or not before for taken, before in zip(choice, have, strict=True))
    )
    assert net_value(found, have, slots, others, copies, price) == pytest.approx(best, abs=1e-9)


@settings(max_examples=60)
@given(st.lists(may_be_empty, min_size=1, max_size=8), st.integers(0, 40))
def test_the_budget_is_kept_and_the_choice_repeats(documents: list[list[int]], budget: int) -> None:
    passages = choose_passages(arrays(documents), budget)
    assert passages == choose_passages(arrays(documents), budget)
    assert sum(end - begin for _, begin, end in passages) <= budget
    for document, begin, end in passages:
        assert 0 <= begin < end <= len(documents[document])
    for one, other in pairwise(passages):
        assert one.document < other.document or (one.document == other.document and one.end < other.begin)


def test_everything_is_kept_whole_where_the_budget_allows() -> None:
    assert choose_passages(arrays([[1], [], [2, 3]]), 3) == [Passage(0, 0, 1), Passage(2, 0, 2)]


def test_what_others_wrote_too_is_kept_and_what_nobody_else_wrote_is_not() -> None:
    phrase = list(range(100, 130))
    documents = [
        [*range(1000 * d, 1000 * d + 40), *phrase, *range(1000 * d + 40, 1000 * d + 80)] for d in range(1, 9)
    ]
    assert choose_passages(arrays(documents), 30) == [Passage(7, 40, 70)]  # of equals the newest


def test_rarer_phrases_come_before_more_copies_of_a_frequent_one() -> None:
    frequent, rare = list(range(100, 110)), list(range(200, 210))
    passages = choose_passages(arrays([frequent] * 20 + [rare] * 2), 20)
    assert [(number < 20) for number, *_ in passages] == [True, False]


def test_among_texts_of_equal_worth_the_newest_stay() -> None:
    documents = [list(range(10 * d, 10 * d + 10)) for d in range(5)]
    assert choose_passages(arrays(documents), 15) == [Passage(3, 5, 10), Passage(4, 0, 10)]


def test_progress_ends_at_the_budget() -> None:
    seen: list[tuple[int, int]] = []
    choose_passages(arrays([[1, 2, 3, 4]] * 6), 9, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
    assert all(done <= total == 9 for done, total in seen)
