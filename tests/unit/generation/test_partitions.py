"""Partitions hold every row once, and whole groups where these fit."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.generation.partitions import pack, partition_size

GROUPS = st.lists(st.integers(0, 9), max_size=200)


@given(GROUPS, st.integers(1, 30))
def test_every_row_is_in_one_partition_of_bounded_size(groups: list[int], size: int) -> None:
    partitions = pack(np.array(groups, np.int64), size)
    assert sorted(row for rows in partitions for row in rows.tolist()) == list(range(len(groups)))
    assert all(0 < len(rows) <= size for rows in partitions)


@given(GROUPS, st.integers(1, 30))
def test_a_group_is_whole_where_it_fits_and_else_in_as_few_partitions_as_can_be(
    groups: list[int], size: int
) -> None:
    partitions = pack(np.array(groups, np.int64), size)
    pieces = Counter(group for rows in partitions for group in {groups[row] for row in rows.tolist()})
    assert pieces == {group: -(-number // size) for group, number in Counter(groups).items()}


@given(GROUPS, st.integers(1, 30))
def test_rows_of_a_group_stand_side_by_side_in_their_order(groups: list[int], size: int) -> None:
    for rows in pack(np.array(groups, np.int64), size):
        found = [groups[row] for row in rows.tolist()]
        changes = sum(one != other for one, other in pairwise(found))
        assert changes == len(set(found)) - 1
        for group in set(found):
            own = [row for row in rows.tolist() if groups[row] == group]
            assert own == sorted(own)


@given(GROUPS, st.integers(1, 30))
def test_no_two_partitions_would_fit_into_one(groups: list[int], size: int) -> None:
    sizes = sorted(map(len, pack(np.array(groups, np.int64), size)))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > size


def test_the_largest_partitions_come_first() -> None:
    assert [len(rows) for rows in pack(np.array([0, 1, 1, 1, 2, 2]), 3)] == [3, 3]
    assert [len(rows) for rows in pack(np.array([0, 1, 1, 1, 2, 2, 3]), 3)] == [3, 3, 1]


def test_every_worker_gets_several_partitions() -> None:
    assert partition_size(400, workers=2, most=1000) == 50
    assert partition_size(100_000, workers=2, most=1000) == 1000
    assert partition_size(3, workers=2, most=1000) == 1
