from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.assignments import (
    Assignment,
    Assignments,
    _place,
    document_key,
    entity_hash,
    kinds_of_group,
    write_assignments,
)
from vllm_dare.pool.tensor_file import write_tensor_file

entries = st.tuples(st.sampled_from(["user", "item"]), st.text(max_size=5), st.text(min_size=1, max_size=5))


@given(st.lists(entries, max_size=50))
@settings(deadline=None, max_examples=100)
def test_look_ups_agree_with_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Assignment]
) -> None:
    table = Assignments.open(write_assignments(tmp_path_factory.mktemp("a"), pairs))
    table.verify()
    expected = {(kind, entity_id): group for kind, entity_id, group in pairs}
    assert len(table) == len(expected)
    for (kind, entity_id), group in expected.items():
        assert table.group_of(kind, entity_id) == group
    assert table.group_of("user", "nobody at all") is None


def test_users_and_items_are_told_apart_and_integers_are_strings(tmp_path: Path) -> None:
    pairs: list[Assignment] = [("user", "3", "users/1"), ("item", "3", "items/9"), ("user", "3", "users/2")]
    table = Assignments.open(write_assignments(tmp_path, pairs))
    assert table.group_of("user", 3) == table.group_of("user", "3") == "users/2"  # the later one
    assert table.group_of("item", 3) == "items/9"


def test_the_same_assignments_give_the_same_file(tmp_path: Path) -> None:
    pairs: list[Assignment] = [("user", str(i), f"g{i % 7}") for i in range(100)]
    assert write_assignments(tmp_path, pairs) == write_assignments(tmp_path, reversed(pairs))
    assert len(list(tmp_path.iterdir())) == 1


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), unique=True, max_size=300), st.data())
@settings(deadline=None, max_examples=200)
def test_a_place_is_found_however_keys_are_spread(keys: list[int], data: st.DataObject) -> None:
    keys.sort()
    key = data.draw(st.sampled_from(keys or [0]) | st.integers(0, 2**64 - 1))
    assert _place(keys, key) == bisect_left(keys, key)


def test_a_place_is_found_among_many_keys() -> None:
    keys = np.sort(np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64))
    wanted = np.concatenate([keys[::97], keys[::97] + np.uint64(1), [np.uint64(0), np.uint64(2**64 - 1)]])
    places = [_place(keys.data, key) for key in wanted.tolist()]
    np.testing.assert_array_equal(places, keys.searchsorted(wanted))


def test_all_entries_come_back(tmp_path: Path) -> None:
    count = 2**16 + 7
    pairs: list[Assignment] = [("user", str(i), f"g{i % 7}") for i in range(count)]
    table = Assignments.open(write_assignments(tmp_path, pairs))
    assert dict(table.items()) == {entity_hash(kind, i): group for kind, i, group in pairs}
    assert len(list(table.items())) == count


def test_damage_is_found(tmp_path: Path) -> None:
    path = write_assignments(tmp_path, [("user", str(i), "g") for i in range(10)])
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(PoolError):
            Assignments.open(path)
    path.write_bytes(content[:-1] + b"\x07")
    table = Assignments.open(path)
    with pytest.raises(PoolError, match=r"checksum"):
        table.verify_checksum()
    # A damaged table may give a wrong answer; it must not fail a request.
    assert {table.group_of("user", i) for i in range(10)} == {"g", None}


@pytest.mark.parametrize(
    ("hashes", "indices", "groups", "reason"),
    [
        ([2, 1], [0, 0], '["g"]', "not sorted"),
        ([1, 1], [0, 0], '["g"]', "not sorted"),
        ([1, 2], [0, 1], '["g"]', "group that does not exist"),
        ([1, 2], [0, -1], '["g"]', "group that does not exist"),
        ([1, 2], [0], '["g"]', "not consistent"),
        ([1, 2], [0, 0], "[1]", "not consistent"),
        ([1, 2], [0, 0], "{", "not consistent"),
        ([1, 2], [0, 0], '["g",]', "not consistent"),
        ([1, 2], [0, 0], '["g" "h"]', "not consistent"),
        ([1, 2], [0, 0], '["g", []]', "not consistent"),
        ([1, 2], [0, 0], '["\\ud800"]', "not consistent"),
    ],
)
def test_a_table_that_is_made_up_is_refused(
    tmp_path: Path, hashes: list[int], indices: list[int], groups: str, reason: str
) -> None:
    arrays = {"hashes": np.array(hashes, np.uint64), "group_indices": np.array(indices, np.int32)}
    metadata = {"kind": "assignments", "format_version": "1", "groups": groups}
    path = write_tensor_file(tmp_path, arrays, metadata, prefix="assignments-")
    with pytest.raises(PoolError, match=reason):
        Assignments.open(path).verify()


@pytest.mark.parametrize("place", [-1, 1])
def test_the_entries_of_a_table_that_is_made_up_name_no_group_that_is_not_there(
    tmp_path: Path, place: int
) -> None:
    arrays = {"hashes": np.array([1], np.uint64), "group_indices": np.array([place], np.int32)}
    metadata = {"kind": "assignments", "format_version": "1", "groups": '["g"]'}
    table = Assignments.open(write_tensor_file(tmp_path, arrays, metadata, prefix="assignments-"))
    with pytest.raises(PoolError, match="group that does not exist"):
        list(table.items())


EXPECTED = [("user", "1", "users/a"), ("user", "x", "users/b")]


def test_csv_jsonl_and_parquet_tables_are_read(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("user,group,note\n1,users/a,\nx,users/b,hi\n")
    jsonl = write_jsonl("a.jsonl", [{"user": 1, "group": "users/a"}, {"user": "x", "group": "users/b"}])
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"user": ["1", "x"], "group": ["users/a", "users/b"]}), table)
    for path in (csv, jsonl, table):
        assert list(read_assignments(path)) == EXPECTED


def test_a_table_may_have_both_users_and_items(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,item,group\n1,,users/a\n,1,items/b\n")
    assert list(read_assignments(path)) == [("user", "1", "users/a"), ("item", "1", "items/b")]


def test_a_document_has_the_key_of_whom_its_group_says_it_is_about() -> None:
    assert document_key(kinds_of_group("users/1"), "7") == entity_hash("user", 7)
    assert document_key(kinds_of_group("items/1"), "7") == entity_hash("item", "7")
    for group in ("3", None):
        assert document_key(kinds_of_group(group), "7") == entity_hash("document", "7")
    assert len({entity_hash(kind, "7") for kind in ("user", "item", "document")}) == 3


@pytest.mark.parametrize(
    "content",
    [
        "user,group\n1\n",
        "user,group\n1,g,more\n",
        "user,group\n1,\n",
        "user,group\n,g\n",
        "name,group\n1,g\n",
        "user,item,group\n1,2,g\n",
        'user,group\n"1,g\n',
        "user,group\n\xff,g\n",
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(PoolError, match=r"a\.csv:\d+ "):
        list(read_assignments(path))
