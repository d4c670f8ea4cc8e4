"""Text in memory: found as if it were one segment of all documents, bounded, and apart where groups are."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.pool.kernels import NUM_COLUMNS, find, segment_row
from vllm_dare.pool.live import MERGE_RATIO, LiveDocument, LivePool, LiveRun, LiveText
from vllm_dare.pool.segment import SEPARATOR, Segment
from vllm_dare.pool.suffix_array import SuffixIndex, find_fault

VOCAB = 5
Texts = list[list[int]]
texts = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), max_size=5)


class Nothing:
    """No frozen text."""

    def group_segments(self, _: str | None) -> tuple[Segment, ...]:
        return ()

    def global_segments(self) -> tuple[Segment, ...]:
        return ()


def array(tokens: Sequence[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def continuations(runs: Iterable[LiveRun | Segment], context: Sequence[int]) -> Counter[int]:
    """What follows ``context``, as the kernels find it."""
    found: Counter[int] = Counter()
    pattern = array(context)
    for run in runs:
        row = segment_row(run)
        assert row.shape == (NUM_COLUMNS,)
        lo, hi = find(row, pattern, 0, len(pattern))
        found.update(int(run.tokens[place + len(context)]) for place in run.suffix_array[lo:hi])
    return found


def expected(documents: Texts, context: Sequence[int]) -> Counter[int]:
    """The same by looking everywhere; a document's end is followed by a separator."""
    found: Counter[int] = Counter()
    for document in documents:
        ended = [*document, SEPARATOR]
        for start in range(len(document) - len(context) + 1):
            if document[start : start + len(context)] == list(context):
                found[ended[start + len(context)]] += 1
    return found


def document(tokens: Sequence[int], group: str | None = None) -> LiveDocument:
    return LiveDocument(array(tokens), group, "strict")


@settings(max_examples=60)
@given(st.lists(texts, max_size=12), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4))
def test_any_additions_are_found_as_in_one_text(additions: list[Texts], context: list[int]) -> None:
    text = LiveText()
    for addition in additions:
        text.add([array(tokens) for tokens in addition])
    everything = [tokens for addition in additions for tokens in addition]
    assert continuations(text.runs, context) == expected(everything, context)
    for run in text.runs:
        index = SuffixIndex(run.suffix_array, run.heads, run.head_starts)
        assert find_fault(run.tokens, index, VOCAB) is None
    lengths = [len(run.tokens) for run in text.runs]
    assert all(a >= MERGE_RATIO * b for a, b in pairwise(lengths))


def test_a_reader_keeps_what_it_got() -> None:
    text = LiveText()
    text.add([array([1, 2, 3])])
    before = text.runs
    text.add([array([1, 2, 4])])
    assert continuations(before, [1, 2]) == {3: 1}
    assert continuations(text.runs, [1, 2]) == {3: 1, 4: 1}


def test_groups_and_everybody_are_served() -> None:
    live = LivePool(Nothing(), has_global=True, max_unfrozen_tokens=1000)
    live.add([document([1, 2, 3], "a"), document([1, 2, 4], "b"), document([1, 2, 5])])
    own, overall = live.segments("a")
    assert continuations(own, [1, 2]) == {3: 1}
    assert continuations(overall, [1, 2]) == {3: 1, 4: 1, 5: 1}
    assert live.segments("nobody")[0] == live.segments(None)[0] == ()


def test_without_a_global_segment_groups_see_nothing_of_each_other() -> None:
    live = LivePool(Nothing(), has_global=False, max_unfrozen_tokens=1000)
    live.add([document([1, 2, 3], "a"), document([1, 2, 5])])
    assert live.segments("b") == live.segments(None) == ((), ())
    assert continuations(live.segments("a")[0], [1, 2]) == {3: 1}
    assert live.num_waiting == 3


def test_every_change_changes_the_version() -> None:
    live = LivePool(Nothing(), has_global=True, max_unfrozen_tokens=1000)
    versions = [live.version]
    live.add([document([1, 2, 3])])
    versions.append(live.version)
    taken = live.take()
    live.swap(Nothing(), taken)
    versions.append(live.version)
    assert len(set(versions)) == 3


def test_text_being_frozen_drafts_until_it_is_swapped() -> None:
    live = LivePool(Nothing(), has_global=True, max_unfrozen_tokens=1000)
    live.add([document([1, 2, 3])])
    taken = live.take()
    live.add([document([1, 2, 4])])
    assert continuations(live.segments(None)[1], [1, 2]) == {3: 1, 4: 1}
    assert [d.tokens.tolist() for d in taken.documents] == [[1, 2, 3]]
    live.swap(Nothing(), taken)
    assert continuations(live.segments(None)[1], [1, 2]) == {4: 1}
    assert live.num_waiting == 3


@pytest.mark.parametrize("taken", [False, True])
def test_what_is_never_frozen_stays_bounded_and_the_oldest_goes(taken: bool) -> None:
    limit = 200
    live = LivePool(Nothing(), has_global=True, max_unfrozen_tokens=limit)
    if taken:
        live.take()
    for i in range(100):
        live.add([document([i % VOCAB] * 9 + [i], "g")])
        for runs in live.segments("g"):
            assert sum(len(run.tokens) for run in runs) <= limit * 11 / 10  # separators
    last = {int(token) for run in live.segments("g")[0] for token in run.tokens}
    assert {99, 98, 97} < last
    assert 10 not in last
