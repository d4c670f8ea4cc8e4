"""Tables as people have them, and what is wrong with some."""

import datetime
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.errors import DareError
from vllm_dare.prompting.tables import (
    Columns,
    Interactions,
    ItemTable,
    read_interactions,
    read_items,
    read_users,
)

WriteTable = Callable[[str, str], Path]
ABC = ItemTable(ids=["a", "b", "c"], titles=["A", "B", "C"], attributes={}, texts={})


def _by_user(found: Interactions) -> dict[str, list[tuple[int, Any]]]:
    liked = [None] * len(found.items) if found.liked is None else found.liked.tolist()
    pairs = list(zip(found.items.tolist(), liked, strict=True))
    return {
        user: pairs[start:end]
        for user, start, end in zip(
            found.user_ids, found.starts.tolist(), found.starts.tolist()[1:], strict=False
        )
    }


def test_items(items_csv: Path) -> None:
    found = read_items(items_csv, Columns())
    assert found.ids == ["1", "2", "3", "4"]
    assert found.titles == ['The "Quiet" Ledger', "Old Maps, New Roads", "The Late Train", "Cold Harbour"]
    assert found.attributes == {
        "genres": [("Mystery", "Noir"), ("Adventure",), (), ("Mystery",)],
        "year": [("1999",), ("2004",), ("1987",), ("2011",)],
    }
    assert found.texts["description"][0].startswith("A clerk finds a ledger that nobody kept, and ")
    assert found.texts.keys() == {"description"} and found.texts["description"][1:] == ["", "", ""]
    assert found.untitled == []


def test_running_text_is_told_from_attributes_and_titles_are_one_line(write: WriteTable) -> None:
    long = "A clerk finds a ledger that nobody kept,\nand reads on until the night train leaves."
    text = f'id,name,blurb,tags\n1," Two\nlines ","{long}","[""x"", ""y|z"", ""x""]"\n2,Other,,[half open\n'
    found = read_items(write("items.csv", text), Columns())
    assert found.titles == ["Two lines", "Other"]
    assert found.texts == {
        "blurb": [
            "A clerk finds a ledger that nobody kept, and reads on until the night train leaves.",
            "",
        ]
    }
    assert found.attributes == {"tags": [("x", "y|z"), ("[half open",)]}


def test_a_table_with_many_titles_of_several_lines(write: WriteTable) -> None:
    rows = "".join(f'{i},"first ""{i}""\nsecond line of {i}, {"x" * 40}"\n' for i in range(30_000))
    found = read_items(write("items.csv", f"item_id,title\n{rows}"), Columns())
    assert len(found.ids) == 30_000
    assert found.titles[29_999].startswith('first "29999" second line of 29999')


def test_items_without_a_title_are_left_out_and_named(write: WriteTable) -> None:
    found = read_items(write("items.csv", "id,title\n5,A\n6,\n7,NaN\n8, \n9,Nan\n"), Columns())
    assert (found.ids, found.titles) == (["5", "9"], ["A", "Nan"])
    assert found.untitled == ["row 2 (id 6)", "row 3 (id 7)", "row 4 (id 8)"]


def test_parquet_items(tmp_path: Path) -> None:
    table = {
        "movieId": [1.0, 2.0],
        "title": ["A", None],
        "genres": [["x", None, "y"], []],
        "year": [1999.0, float("nan")],
    }
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    found = read_items(tmp_path / "items.parquet", Columns())
    assert (found.ids, found.titles) == (["1"], ["A"])
    assert found.attributes == {"genres": [("x", "y")], "year": [("1999",)]}
    assert found.untitled == ["row 2 (id 2)"]


def test_titles_that_are_all_numbers_that_are_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "title": [float("nan")]}), tmp_path / "items.parquet")
    with pytest.raises(DareError, match=r"No item of .*items.parquet has a title; .* --title-column"):
        read_items(tmp_path / "items.parquet", Columns())


@pytest.mark.parametrize(
    ("text", "columns", "sentence"),
    [
        ("", Columns(), "Empty CSV file"),
        ("id,title\n", Columns(), "items.csv has no row; give at least one"),
        ("id,label\n1,a\n", Columns(), "has the columns id, label; say with --title-column which one"),
        ("key,title\n1,a\n", Columns(), "has the columns key, title; say with --item-id-column which one"),
        ("id,title\n1,a\n", Columns(title="headline"), "has no column 'headline'; its columns are id, title"),
        ("id,title\n1,a\n2,b\n1,c\n", Columns(), "row 3 repeats the id '1' of row 1; ids must be unique"),
        ("id,title\n1,a\n,b\n", Columns(), "row 2 has no id; fill it, or remove the row"),
        ("id,title\n1,\n2,\n", Columns(), "No item of .* has a title"),
        ("id,title,title\n1,a,b\n", Columns(), "has two columns 'title'; rename or remove one"),
        ("id,title\n1,a,b\n", Columns(), "Expected 2 columns, got 3"),
    ],
)
def test_item_tables_of_no_use(write: WriteTable, text: str, columns: Columns, sentence: str) -> None:
    with pytest.raises(DareError, match=sentence) as error:
        read_items(write("items.csv", text), columns)
    assert "items.csv" in str(error.value) and "\n" not in str(error.value)


def test_users(users_csv: Path, write: WriteTable) -> None:
    found = read_users(users_csv, Columns())
    assert found.ids == ["7", "9"]
    assert found.attributes == {"age": [("25",), ("31",)], "gender": [("F",), ()]}
    with pytest.raises(DareError, match="row 2 repeats the user_id '7' of row 1"):
        read_users(write("users.csv", "user_id\n7\n7\n"), Columns())
    with pytest.raises(DareError, match="--user-id-column"):
        read_users(write("users.csv", "person\n7\n"), Columns())


def test_interactions(items_csv: Path, clicks_csv: Path) -> None:
    items = read_items(items_csv, Columns())
    found = read_interactions(clicks_csv, items, Columns())
    assert _by_user(found) == {"7": [(2, False), (1, True), (0, True)], "8": [(1, False)], "9": [(3, False)]}
    assert (found.liking, found.timed, found.unknown, found.repeated) == ("rating >= 4", True, 0, 0)
    assert _by_user(read_interactions(clicks_csv, items, Columns(), 3))["9"] == [(3, True)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"who,what,stars,when\nu,a,5,2\nu,b,1,1\n"))
    found = read_interactions(tmp_path / "c.csv.gz", ABC, Columns("who", "what", "stars", "when"), 4)
    assert _by_user(found) == {"u": [(1, False), (0, True)]}
    unrated = read_interactions(tmp_path / "c.csv.gz", ABC, Columns("who", "what"))
    assert _by_user(unrated) == {"u": [(0, None), (1, None)]}
    assert (unrated.timed, unrated.liking) == (False, None)


@pytest.mark.parametrize(
    "times",
    [
        [3, 1, 2],
        [0.5, -2.5, 0.25],
        [2**62 + 3, 2**62 + 1, 2**62 + 2],
        ["2024-05-01", "2020-01-01", "2024-04-30"],
        ["2024-05-01 10:00:00", "2024-05-01 09:00:00", "2024-05-01 09:59:59"],
        [datetime.datetime(2024, 1, day) for day in (3, 1, 2)],
        [datetime.date(2024, 1, day) for day in (3, 1, 2)],
    ],
)
def test_kinds_of_time(tmp_path: Path, times: list[Any]) -> None:
    table = pa.table({"user": [1, 1, 1], "item": ["a", "b", "c"], "time": times})
    pq.write_table(table, tmp_path / "c.parquet")
    found = read_interactions(tmp_path / "c.parquet", ABC, Columns())
    assert found.items.tolist() == [1, 2, 0]


def test_categories_and_booleans_of_parquet(tmp_path: Path) -> None:
    users = pa.DictionaryArray.from_arrays([2, 0, 2], ["z", "unused", "y"])
    table = pa.table({"user": users, "item": ["a", "b", "c"], "label": [True, False, True]})
    pq.write_table(table, tmp_path / "c.parquet")
    found = read_interactions(tmp_path / "c.parquet", ABC, Columns())
    assert _by_user(found) == {"y": [(0, True), (2, True)], "z": [(1, False)]}


def test_leading_zeros_of_ids_stay(write: WriteTable) -> None:
    items = read_items(write("items.csv", "id,title\n007,A\n7,B\n"), Columns())
    found = read_interactions(write("c.csv", "user,item\n01,7\n1,007\n"), items, Columns())
    assert _by_user(found) == {"01": [(1, None)], "1": [(0, None)]}


ROWS = st.lists(
    st.tuples(
        st.sampled_from("uvw"), st.sampled_from("abcx"), st.sampled_from([1, 3, 4, 5]), st.integers(0, 3)
    ),
    min_size=1,
)


@given(rows=ROWS)
@settings(max_examples=60)
def test_order_and_repetitions_as_said_in_plain_words(
    rows: list[tuple[str, str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "c.csv"
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(["user,item,rating,time", *lines, "u,a,5,-1"]) + "\n")
    rows = [*rows, ("u", "a", 5, -1)]
    expected: dict[str, list[tuple[int, bool]]] = {user: [] for user, *_ in rows}
    for user, item, rating, _ in sorted(rows, key=lambda row: row[3]):
        if item != "x":
            before = [pair for pair in expected[user] if pair[0] != "abc".index(item)]
            expected[user] = [*before, ("abc".index(item), rating >= 4)]
    found = read_interactions(path, ABC, Columns())
    assert _by_user(found) == expected
    assert list(found.user_ids) == list(dict.fromkeys(user for user, *_ in rows))
    assert found.unknown == sum(row[1] == "x" for row in rows)
    assert found.repeated == len(rows) - found.unknown - sum(map(len, expected.values()))


def test_interactions_with_unknown_items_are_counted(write: WriteTable) -> None:
    found = read_interactions(write("c.csv", "user,item\nu,a\nu,zz\nv,zz\n"), ABC, Columns())
    assert (found.unknown, _by_user(found)) == (2, {"u": [(0, None)], "v": []})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Empty CSV file"),
        ("user,item\n", "c.csv has no row; give at least one interaction"),
        ("user,thing\n1,a\n", "columns user, thing; say with --item-column"),
        ("person,item\n1,a\n", "columns person, item; say with --user-column"),
        ("user,item\n1,q\n2,r\n", r"No item of .* \(such as q\) is in the item table \(with such as a\)"),
        ("user,item\n1,a\n,b\n", "row 2 has no user; fill it"),
        ("user,item\n1,a\n2,\n", "row 2 has no item; fill it"),
        ("user,item,rating\n1,a,5\n1,b,\n", "row 2 has the rating '', which is no number"),
        ("user,item,rating\n1,a,5\n1,b,good\n", "row 2 has the rating 'good', which is no number"),
        ("user,item,rating\n1,a,9\n1,b,2\n", "'rating' of .* goes from 2 to 9; say with --min-weight"),
        ("user,item,rating\n1,a,-1\n1,b,1\n", "goes from -1 to 1; say with --min-weight"),
        ("user,item,rating\n1,a,0.5\n1,b,1\n", "goes from 0.5 to 1; say with --min-weight"),
        ("user,item,count\n1,a,4\n1,b,2\n", "'count' of .* goes from 2 to 4; say with --min-weight"),
        ("user,item,time\n1,a,5\n1,b,\n", "row 2 has no time; fill it"),
        ("user,item,time\n1,a,3 May\n1,b,4 May\n", "row 1 has the time '3 May', which has no order in time"),
        ("user,item,time\n1,a,2024-01-02\n1,b,4 May\n", "row 2 has the time '4 May', which has no order"),
    ],
)
def test_interactions_of_no_use(write: WriteTable, text: str, sentence: str) -> None:
    with pytest.raises(DareError, match=sentence) as error:
        read_interactions(write("c.csv", text), ABC, Columns())
    assert "c.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["rating", "time"])
def test_numbers_that_are_none(tmp_path: Path, column: str) -> None:
    table = pa.table({"user": [1, 2], "item": ["a", "b"], column: [1.0, float("nan")]})
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(DareError, match="row 2 has"):
        read_interactions(tmp_path / "c.parquet", ABC, Columns())


def test_halves_after_many_whole_numbers(write: WriteTable) -> None:
    rows = "".join(f"user{i},a,4\n" for i in range(100_000))
    found = read_interactions(write("c.csv", f"user,item,rating\n{rows}v,a,3.5\n"), ABC, Columns())
    assert found.liked is not None and found.liked.tolist() == [True] * 100_000 + [False]


@pytest.mark.parametrize("words", [("true", "false"), ("True", "False"), ("1", "0"), ("1.0", "0.0")])
def test_labels(write: WriteTable, words: tuple[str, str]) -> None:
    path = write("c.csv", "user,item,pos\nu,a,{}\nu,b,{}\n".format(*words))
    found = read_interactions(path, ABC, Columns())
    assert _by_user(found) == {"u": [(0, True), (1, False)]} and found.liking == "pos >= 1"


def test_a_threshold_without_weights(write: WriteTable) -> None:
    with pytest.raises(DareError, match="has no weights for --min-weight; name their column with --weight-"):
        read_interactions(write("c.csv", "user,item\n1,a\n"), ABC, Columns(), 4)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DareError, match=r"There is no file .*nowhere.csv"):
        read_items(tmp_path / "nowhere.csv", Columns())
    with pytest.raises(DareError, match=r"There is no file .*nowhere.parquet"):
        read_interactions(tmp_path / "nowhere.parquet", ABC, Columns())
    with pytest.raises(DareError, match=r"give a .csv"):
        read_users(tmp_path / "users.dat", Columns())


def test_starts_have_one_more_than_users(write: WriteTable) -> None:
    found = read_interactions(write("c.csv", "user,item\nu,zz\nv,a\nw,zz\n"), ABC, Columns())
    np.testing.assert_array_equal(found.starts, [0, 0, 1, 1])
