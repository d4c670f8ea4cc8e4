import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from vllm_dare.errors import DareError
from vllm_dare.routing.item_values import ItemValues, read_item_values

EXPECTED = [ItemValues("1", ("War", "Drama")), ItemValues("2", ()), ItemValues("x", ("Sci-Fi",))]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_csv_with_bars_or_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "title,movie_id,genres\nA,1,War| Drama|War\nB,2,\nC,x,Sci-Fi\n")
    assert read_item_values(path, "genres") == EXPECTED
    path = write(tmp_path / "b.csv", 'ID,genres\n1,"[""War"", ""Drama""]"\n2,[]\nx,Sci-Fi\n')
    assert read_item_values(path, "genres") == EXPECTED
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_item_values(tmp_path / "c.csv.gz", "genres") == EXPECTED


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"id": 1, "genres": ["War", "Drama"]}, {"id": 2}, {"id": "x", "genres": "Sci-Fi"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_item_values(path, "genres") == EXPECTED


def test_parquet_lists(tmp_path: Path) -> None:
    table = pa.table({"key": ["1", "2", "x"], "genres": [["War", "Drama", None], None, ["Sci-Fi", ""]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_item_values(tmp_path / "a.parquet", "genres", "key") == EXPECTED


def test_a_column_of_numbers_is_grouped_too(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"item": [7, 8], "year": [1999, 2001]}), tmp_path / "a.parquet")
    found = read_item_values(tmp_path / "a.parquet", "year")
    assert found == [ItemValues("7", ("1999",)), ItemValues("8", ("2001",))]


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (
            "movie_id,genres\n1,a\n",
            {"attribute": "genre"},
            "no column 'genre'; its columns are movie_id, genres",
        ),
        ("movie_id,genres\n1,a\n", {"id_column": "film"}, "no column 'film'"),
        ("film,genres\n1,a\n", {}, "columns film, genres; say with --item-id-column"),
        ("movie_id,genres\n1,a\n2,b\n1,c\n", {}, r"a.csv:4 has the item 1 of .*a.csv:2 again"),
        ("movie_id,genres\n1,a\n,b\n", {}, "a.csv:3 has no item id in 'movie_id'"),
        ("movie_id,genres\n1,a,b\n", {}, "a.csv:2 has more or fewer columns|Expected 2 columns"),
        ("movie_id,genres\n1,\n2,|\n", {}, "column 'genres' of .* is empty; name another one"),
        ("movie_id,genres\n", {}, "is empty"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, content: str, options: dict[str, str], reason: str) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(DareError, match=reason):
        read_item_values(path, **{"attribute": "genres", **options})


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.txt"])
def test_a_table_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DareError, match=r"no file|Cannot read"):
        read_item_values(tmp_path / name, "genres")
