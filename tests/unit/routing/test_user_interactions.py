"""Interaction tables: what is positive, what is one pair, which ids are one."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.errors import DareError
from vllm_dare.routing.interactions import Columns, Positives, read_positives


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def pairs(found: Positives) -> list[tuple[str, str]]:
    return [(found.user_ids[u], found.item_ids[i]) for u, i in zip(found.users, found.items, strict=True)]


def test_labels_duplicates_and_users_without(tmp_path: Path) -> None:
    text = "userID,movieID,pos\n7,x,1\nbob,y,1\n7,x,1\n7,x,0\n7,y,0\nmute,x,0\n7,z,1\n"
    found = read_positives(write(tmp_path / "a.csv", text), Columns())
    assert pairs(found) == [("7", "x"), ("7", "z"), ("bob", "y")]
    assert (found.num_rows, found.num_negative, found.num_repeated) == (7, 3, 1)
    assert found.num_users_without == 1
    assert (found.num_users, found.num_items) == (2, 3)
    assert found.matrix(3).toarray().tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)), min_size=1
    )
)
def test_against_sets(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, ...]]) -> None:
    liked: dict[tuple[str, str], int] = {}
    for user, item, rating, when in rows:
        if rating >= 3:
            key = (str(user), str(item))
            liked[key] = min(when, liked.get(key, when))
    path = tmp_path_factory.mktemp("t") / "a.parquet"
    columns = dict(zip(("user", "item", "rating", "timestamp"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), path)
    if not liked:
        with pytest.raises(DareError, match="no rating reaches --min-weight 3: lower it"):
            read_positives(path, Columns(), 3)
        return
    found = read_positives(path, Columns(), 3)
    assert found.times is not None
    assert dict(zip(pairs(found), found.times.tolist(), strict=True)) == liked
    assert found.num_rows - found.num_negative - found.num_repeated == len(found.users) == len(liked)
    order = found.users.astype(np.int64) * found.num_items + found.items
    assert (np.diff(order) > 0).all()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([42, 42, 7]),
        pa.array(["42", "42", "7"]),
        pa.array([42.0, 42.0, 7.0]),
        pa.array(["42", "42", "7"]).dictionary_encode(),
        pa.array(["42", "42", "7"], pa.large_string()),
    ],
)
def test_ids_are_the_same_as_numbers_and_as_text(tmp_path: Path, column: Any) -> None:
    pq.write_table(pa.table({"user": column, "item": [1, 2, 1]}), tmp_path / "a.parquet")
    assert pairs(read_positives(tmp_path / "a.parquet", Columns())) == [("42", "1"), ("42", "2"), ("7", "1")]


def test_mixed_ids_and_leading_zeros_of_csv_are_text(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("who,what\n1,007\nbob,7\n")
    found = read_positives(tmp_path / "a.csv.gz", Columns(user="who", item="what"))
    assert pairs(found) == [("1", "007"), ("bob", "7")]


def test_dates_are_times(tmp_path: Path) -> None:
    text = "user,item,date\na,x,2024-03-01\na,y,2023-01-01\na,x,2022-01-01\n"
    times = read_positives(write(tmp_path / "a.csv", text), Columns()).times
    assert times is not None and times[0] < times[1]


def test_weights_are_numbers_whatever_the_first_rows_are_like(tmp_path: Path) -> None:
    rows = "".join(f"a,{i},3\n" for i in range(300_000))
    path = write(tmp_path / "a.csv", f"user,item,rating\n{rows}b,x,3.5\n")
    assert pairs(read_positives(path, Columns(), 3.2)) == [("b", "x")]


@pytest.mark.parametrize("labels", [("true", "false"), ("True", "False"), ("1.0", "0"), ("1", "0.0")])
def test_words_and_numbers_for_labels(tmp_path: Path, labels: tuple[str, str]) -> None:
    path = write(tmp_path / "a.csv", f"user,item,click\na,x,{labels[0]}\na,y,{labels[1]}\n")
    assert pairs(read_positives(path, Columns())) == [("a", "x")]
    table = pa.table({"user": ["a", "a"], "item": ["x", "y"], "click": [True, False]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert pairs(read_positives(tmp_path / "a.parquet", Columns())) == [("a", "x")]


def test_of_several_columns_that_fit_one_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,user_id,item,rating,pos\nAnn,a,x,1,0\nBob,b,y,0,1\n")
    assert pairs(read_positives(path, Columns(user="user_id", weight="pos"))) == [("b", "y")]
    assert pairs(read_positives(path, Columns(user="user", weight="rating"))) == [("Ann", "x")]


@pytest.mark.parametrize(
    ("text", "columns", "min_weight", "message"),
    [
        ("user,item\n", {}, None, "a.csv has no rows"),
        ("", {}, None, "Cannot read .*a.csv"),
        ("user,item,pos\na,x,0\n", {}, None, "No interaction of .* is positive; every pos is 0"),
        ("user,item,rating\na,x,1\na,y,5\n", {}, None, r"a.csv:3 has the rating 5, .* --min-weight 4"),
        ("user,item,pos\na,x,1\na,y,\n", {}, None, r"a.csv:3 has no pos"),
        ("user,item,time\na,x,1\na,y,late\n", {}, None, "'time' of .* is neither numbers nor dates"),
        ("user,item,pos\na,x,1\na,y,nan\n", {}, None, r"a.csv:3 has no number as pos"),
        ("user,item,pos\na,x,yes\n", {}, None, "column 'pos' of .* is not numbers"),
        ("user,item\na,x\n,y\n", {}, None, r"a.csv:3 has no user"),
        ("user,item,date\na,x,2024-03-01\na,y,\n", {}, None, r"a.csv:3 has no date"),
        ("user,item\na,x\n", {}, 4, "no weights for --min-weight"),
        ("user,item\na,x\n", {"item": "film"}, None, "no column 'film'; its columns are user, item"),
        ("user,item\na,x\n", {"weight": "stars"}, None, "no column 'stars'"),
        ("who,item\na,x\n", {}, None, "say with --user-column"),
        ("user_id,item_id,user_id\na,x,b\n", {}, None, "columns user_id and user_id; rename or remove"),
        ("user,item,user\na,x,b\n", {"user": "user"}, None, "columns user and user; rename or remove"),
        ("user_id,item,USER\na,x,b\n", {}, None, "columns user_id and USER; say with --user-column"),
        ("user,item,movie\na,x,b\n", {}, None, "columns item and movie; say with --item-column"),
        ("user,item,rating,score\na,x,1,0\n", {}, None, "rating and score; say with --weight-column"),
        ("user,item,date,time\na,x,1,0\n", {}, None, "date and time; say with --time-column"),
        ("user,item\na,x\nb\n", {}, None, "Cannot read .*a.csv"),
    ],
)
def test_bad_tables(
    tmp_path: Path, text: str, columns: dict[str, str], min_weight: float | None, message: str
) -> None:
    with pytest.raises(DareError, match=message):
        read_positives(write(tmp_path / "a.csv", text), Columns(**columns), min_weight)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (pa.array([1.0, 2.5]), r"a.parquet:2 has the user 2.5"),
        (pa.array([1, None]), r"a.parquet:2 has no user"),
        (pa.array([[1], [2]]), "column 'user' of .* holds list"),
        (pa.array([True, False]), "column 'user' of .* holds bool"),
        (pa.nulls(2), r"a.parquet:1 has no user"),
    ],
)
def test_bad_parquet_ids(tmp_path: Path, user: Any, message: str) -> None:
    pq.write_table(pa.table({"user": user, "item": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DareError, match=message):
        read_positives(tmp_path / "a.parquet", Columns())


@pytest.mark.parametrize(("name", "message"), [("no.csv", "There is no file"), ("a.txt", "give a .csv")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DareError, match=message):
        read_positives(tmp_path / name, Columns())
    (tmp_path / "b.parquet").write_bytes(b"nonsense")
    with pytest.raises(DareError, match=r"Cannot read .*b.parquet"):
        read_positives(tmp_path / "b.parquet", Columns())
