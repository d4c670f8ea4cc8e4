"""Interaction and item tables as users have them."""

import datetime
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_dare.errors import DareError
from vllm_dare.evaluation.interactions import Columns, Items, read_interactions, read_items

ITEMS = Items(["10", "20"], ["A", "B"], np.eye(2, dtype=bool))


def _read(path: Path, columns: Columns = Columns(), prefix: str = "u"):  # noqa: B008
    return read_interactions(path, ITEMS, ["u2", "u1"], columns, prefix)


def _csv(tmp_path: Path, text: str, name: str = "clicks.csv") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("header", ["userID,movieID,pos", "user_id,item_id,label", "user,item,click"])
def test_columns_are_known_by_name(tmp_path: Path, header: str) -> None:
    found = _read(_csv(tmp_path, f"{header}\n1,10,1\n2,20,0\n3,10,1\n1,99,1\n"))
    assert found.users.tolist() == [1, 0, -1], "the unknown item is left out"
    assert found.items.tolist() == [0, 1, 0]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.times is None and found.num_users == 2
    assert found.of_documents().users.tolist() == [1, 0]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv.gz"
    path.write_bytes(gzip.compress(b"who,what,liked,when\n1,10,1,2020-01-02\n2,20,0,2020-01-01\n"))
    found = _read(path, Columns("who", "what", "liked", "when"))
    assert found.labels.tolist() == [1, 0]
    assert found.times is not None and found.times[0] > found.times[1]


def test_parquet_with_numbers_booleans_and_times(tmp_path: Path) -> None:
    times = [datetime.datetime(2020, 1, day) for day in (2, 1)]
    table = {"user": [1, 2], "item": [10, 20], "label": [True, False], "t": times}
    pq.write_table(pa.table(table), tmp_path / "clicks.parquet")
    found = _read(tmp_path / "clicks.parquet", Columns(time="t"))
    assert found.labels.tolist() == [1, 0]
    assert found.times is not None and found.times[0] > found.times[1]


@pytest.mark.parametrize(
    ("text", "columns", "sentence"),
    [
        ("user,item,rating\n1,10,5\n2,20,3\n", Columns(), "a label is 0 or 1: add a column"),
        ("user,item,pos\n1,10,1\n2,20,1\n", Columns(), "have the same pos"),
        ("user,item,pos\n8,10,1\n9,20,0\n", Columns(), "No user of .* has a document .*--id-prefix"),
        ("user,item,pos\n1,7,1\n2,8,0\n", Columns(), "No item of .* is in the item table"),
        ("user,thing,pos\n1,7,1\n", Columns(), "columns user, thing, pos; say with --item-column"),
        (
            "user,item,pos\n1,10,1\n",
            Columns(label="liked"),
            "has no column 'liked'; its columns are user",
        ),
        ("user,item,pos\n1,10,yes\n", Columns(), "holds 'yes', but a label is 0 or 1"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    tmp_path: Path, text: str, columns: Columns, sentence: str
) -> None:
    with pytest.raises(DareError, match=sentence) as error:
        _read(_csv(tmp_path, text), columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.parquet"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DareError, match="There is no file"):
        _read(tmp_path / name)


@pytest.mark.parametrize("name", ["damaged.parquet", "damaged.csv", "kind.txt"])
def test_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\x00,")
    with pytest.raises(DareError):
        _read(tmp_path / name)


def test_items_are_separated_by_bars_or_json(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('movie_id,title,genres\n1,"A, b",Drama|Action\n2,c,"[""Action"", ""Sci-Fi""]"\n3,d,\n')
    found = read_items(path, "genres")
    assert (found.ids, found.values) == (["1", "2", "3"], ["Action", "Drama", "Sci-Fi"])
    assert found.has.tolist() == [[True, True, False], [True, False, True], [False] * 3]
    with pytest.raises(DareError, match="has no column 'tags'; its columns are movie_id, title, genres"):
        read_items(path, "tags")
    path.write_text("id,genres\n1,\n")
    with pytest.raises(DareError, match="is empty"):
        read_items(path, "genres")
