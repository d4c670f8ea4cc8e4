import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from vllm_dare.errors import PoolError
from vllm_dare.pool.documents import Document, read_documents
from vllm_dare.pool.rows import BadRows

Write = Callable[..., Path]
GOOD = {"id": "u1", "text": "a b", "group": "users/1"}


def read(path: Path, bad_rows: BadRows | None = None) -> list[tuple[Any, ...]]:
    return [
        (d.id, d.text, None if d.token_ids is None else d.token_ids.tolist(), d.group)
        for d in read_documents([path], bad_rows)
    ]


ROWS = [
    GOOD | {"prompt": "ignored"},
    {"id": 42, "text": ""},
    {"id": "u3", "token_ids": [1, 2], "text": "loses", "group": None},
    {"id": "u4", "token_ids": []},
]
EXPECTED = [
    ("u1", "a b", None, "users/1"),
    ("42", "", None, None),
    ("u3", None, [1, 2], None),
    ("u4", None, [], None),
]


def test_jsonl_is_read(write_jsonl: Write) -> None:
    assert read(write_jsonl("documents.jsonl", ROWS)) == EXPECTED


def test_compressed_jsonl_is_read(tmp_path: Path) -> None:
    path = tmp_path / "documents.JSONL.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert read(path) == EXPECTED


def test_parquet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    rows = [row | {"id": str(row["id"])} for row in ROWS]
    types = {"id": pa.string(), "text": pa.string(), "token_ids": pa.list_(pa.int32()), "group": pa.string()}
    parquet.write_table(pa.Table.from_pylist(rows, pa.schema(list(types.items()))), path)
    assert read(path) == EXPECTED


def test_parquet_with_integer_ids_and_no_group_is_read(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    parquet.write_table(pa.table({"id": [7, 8], "text": ["a", "b"]}), path)
    assert read(path) == [("7", "a", None, None), ("8", "b", None, None)]


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n\n  \n" + json.dumps(GOOD).encode())
    assert len(read(path)) == 2


def test_a_document_may_say_whom_it_is_about(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [GOOD | {"user": 1, "item": None}, {"id": "i", "token_ids": [1], "item": "x"}, GOOD]
    expected = [("1", None), (None, "x"), (None, None)]
    jsonl, table = write_jsonl("documents.jsonl", rows), tmp_path / "documents.parquet"
    parquet.write_table(pa.table({"id": ["u"], "text": ["a"], "user": [1]}), table)
    assert [(d.user, d.item) for d in read_documents([jsonl])] == expected
    assert [(d.user, d.item) for d in read_documents([table])] == [("1", None)]


def test_a_document_knows_its_line(write_jsonl: Write) -> None:
    path = write_jsonl("documents.jsonl", [GOOD, GOOD])
    assert [d.source for d in read_documents([path])] == [f"{path}:1", f"{path}:2"]


BAD_LINES = [
    pytest.param(b'{"id": "u", "text": "\xff"}', "is not valid UTF-8", id="not UTF-8"),
    pytest.param(b'{"id": "u"', "is not valid JSON", id="cut JSON"),
    pytest.param(b"[" * 100_000, "is not valid JSON", id="deep nesting"),
    pytest.param(b"9" * 5000, "is not valid JSON", id="an endless number"),
    pytest.param(b'["id"]', "is not a JSON object", id="a list"),
    pytest.param(b"null", "is not a JSON object", id="null"),
    pytest.param(b'{"text": "a"}', "has no id", id="no id"),
    pytest.param(b'{"id": "", "text": "a"}', "has no id", id="empty id"),
    pytest.param(b'{"id": true, "text": "a"}', "has no id", id="a truth for an id"),
    pytest.param(b'{"id": 1.5, "text": "a"}', "has no id", id="a fraction for an id"),
    pytest.param(b'{"id": "u"}', "has neither text nor token_ids", id="no text"),
    pytest.param(b'{"id": "u", "text": null}', "has neither text nor token_ids", id="null text"),
    pytest.param(b'{"id": "u", "text": 5}', "has a text that is not a string", id="a number for a text"),
    pytest.param(b'{"id": "u", "text": "\\ud800"}', "has a text that is not", id="half a surrogate pair"),
    pytest.param(b'{"id": "u", "text": "a", "group": 3.5}', "has a group", id="a fraction for a group"),
    pytest.param(b'{"id": "u", "text": "a", "group": ""}', "has a group", id="empty group"),
    pytest.param(b'{"id": "u", "text": "a", "user": ""}', "has a user that is no name", id="empty user"),
    pytest.param(b'{"id": "%s", "text": "a"}' % (b"u" * 1001), "has no id that can be used", id="long id"),
    pytest.param(b'{"id": "u", "text": "a", "group": "a\\u0000"}', "has a group that is no name", id="NUL"),
    pytest.param(
        b'{"id": "u", "text": "a", "item": "%s"}' % (b"i" * 1001),
        "has an item that is no name",
        id="long item",
    ),
    pytest.param(
        b'{"id": "u", "text": "a", "item": 1.5}', "has an item that is no", id="a fraction for an item"
    ),
    pytest.param(
        b'{"id": "u", "text": "a", "user": 1, "item": 2}', "has both a user and an item", id="of two"
    ),
    pytest.param(b'{"id": "u", "token_ids": [1, -1]}', "negative", id="negative token id"),
    pytest.param(b'{"id": "u", "token_ids": [1, 2147483647]}', "beyond any", id="huge token id"),
    pytest.param(b'{"id": "u", "token_ids": [1e2]}', "not a list of integers", id="fractional token id"),
    pytest.param(b'{"id": "u", "token_ids": ["1"]}', "not a list of integers", id="string token id"),
    pytest.param(b'{"id": "u", "token_ids": [true]}', "not a list of integers", id="truth as token id"),
    pytest.param(b'{"id": "u", "token_ids": [[1], [1, 2]]}', "not a list of integers", id="ragged"),
    pytest.param(b'{"id": "u", "token_ids": 5}', "not a list of integers", id="a number for token ids"),
    pytest.param(b'{"id": "u", "token_ids": {}}', "not a list of integers", id="an object for token ids"),
    pytest.param(b'{"id": "u", "token_ids": [99999999999999999999]}', "not a list of", id="beyond 64 bits"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "documents.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, line, good]))
    with pytest.raises(PoolError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:2 ")
    assert str(caught.value).endswith(".")

    bad_rows = BadRows(skip=True)
    assert len(read(path, bad_rows)) == 2
    assert bad_rows.num_skipped == 1
    assert bad_rows.first_reason == str(caught.value)


def test_a_missing_file_or_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"There is no file .*none\.jsonl"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(PoolError, match=r"give a \.jsonl, \.jsonl\.gz, .* or \.parquet file"):
        read(tmp_path / "documents.txt")
    (tmp_path / "directory.jsonl").mkdir()
    with pytest.raises(PoolError, match=r"Cannot read"):
        read(tmp_path / "directory.jsonl")


@pytest.mark.parametrize("name", ["documents.jsonl.gz", "documents.parquet"])
def test_a_broken_container_is_refused_even_when_bad_rows_are_skipped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"PAR1 nonsense PAR1", gzip.compress(b'{"id": 1, "text": "a"}\n' * 99)[:-9]):
        if content == b"" and name.endswith("gz"):
            continue  # an empty file is what gzip makes of nothing
        path.write_bytes(content)
        with pytest.raises(PoolError, match=r"Cannot read .* check that"):
            read(path, BadRows(skip=True))


def test_documents_of_several_files_come_in_order(write_jsonl: Write) -> None:
    paths = [write_jsonl(f"{i}.jsonl", [{"id": i, "text": "a"}]) for i in range(3)]
    assert [document.id for document in read_documents(paths)] == ["0", "1", "2"]
    assert all(isinstance(document, Document) for document in read_documents(paths))


def test_a_number_for_a_group_is_its_name_in_digits(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text('{"id": 1, "text": "a", "group": 5}\n')
    assert [document.group for document in read_documents([path])] == ["5"]
