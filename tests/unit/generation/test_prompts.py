"""Prompt files are read row by row, and a bad row is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation.prompts import PromptRow, id_key, read_prompts

ROWS: list[dict[str, Any]] = [
    {"id": "u1", "prompt": "One", "user": 7, "group": "users/3", "max_tokens": 5},
    {"id": 2, "prompt": "Zwei ✓", "item": None, "other": [1, 2]},
    {"id": 3, "prompt": "c", "history": [5, "m6"], "attributes": {"genre": ["War"], "age": None}},
]
EXPECTED = [
    PromptRow("u1", "One", {"dare_group": "users/3", "dare_user": 7}, 5),
    PromptRow(2, "Zwei ✓", {}, None),
    PromptRow(3, "c", {"dare_history": [5, "m6"], "dare_attributes": {"genre": ["War"], "age": None}}, None),
]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_lines(tmp_path: Path) -> None:
    assert list(read_prompts(_write(tmp_path / "p.jsonl", ROWS))) == EXPECTED


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(_write(tmp_path / "p.jsonl", ROWS).read_bytes()))
    assert list(read_prompts(path)) == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": [1, 2], "prompt": ["a", "b"], "user": ["x", None]}), path)
    assert list(read_prompts(path)) == [PromptRow(1, "a", {"dare_user": "x"}), PromptRow(2, "b", {})]


def test_parquet_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    messages = [{"role": "user", "content": "hi"}]
    pq.write_table(pa.table({"id": ["a"], "messages": [messages]}), path)
    assert list(read_prompts(path)) == [PromptRow("a", messages, {})]


def test_limit_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\n{"id": 1, "prompt": "a"}\n\n{"id": 2, "prompt": "b"}\nnot json')
    assert [row.id for row in read_prompts(path, limit=2)] == [1, 2]


def test_the_full_spelling_goes_before_the_short_one(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "a", "group": "short", "dare_group": "full", "dare_top_k": 3}
    path = _write(tmp_path / "p.jsonl", [row])
    assert next(read_prompts(path)).metadata == {"dare_group": "full", "dare_top_k": 3}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1 is not a JSON object"),
        ("[1]", "row 1 is not a JSON object"),
        ('{"prompt": "a"}', "needs an `id`"),
        ('{"id": true, "prompt": "a"}', "needs an `id`"),
        ('{"id": 1.5, "prompt": "a"}', "needs an `id`"),
        ('{"id": "", "prompt": "a"}', "has an empty `id`"),
        ("[" * 100_000, "line 1 is nested too deeply"),
        ('{"id": 1}', "either a `prompt` or `messages`"),
        ('{"id": 1, "prompt": "a", "messages": []}', "either a `prompt` or `messages`"),
        ('{"id": 1, "prompt": ["a"]}', "must be a text, not list"),
        ('{"id": 1, "messages": []}', "must be a list of chat messages"),
        ('{"id": 1, "messages": ["hi"]}', "must be a list of chat messages"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DareError, match=reason):
        list(read_prompts(path))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "missing.jsonl.gz"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DareError, match="There is no prompt file"):
        list(read_prompts(tmp_path / name))


@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"plain text")
    with pytest.raises(DareError, match=r"The prompt file .* (cannot be read|is not a Parquet file)"):
        list(read_prompts(tmp_path / name))


def test_a_torn_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": 1, "prompt": "a"}\n' * 1000)[:-20])
    with pytest.raises(DareError, match="cannot be read"):
        list(read_prompts(path))


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    data = bytearray(gzip.compress(b'{"id": 1, "prompt": "a"}\n' * 1000))
    data[20:40] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(DareError, match=r"p.jsonl.gz"):
        list(read_prompts(path))


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes('{"id": 1, "prompt": "ü"}\n'.encode("latin-1"))
    with pytest.raises(DareError, match="line 1 is not valid UTF-8"):
        list(read_prompts(path))


def test_a_number_and_its_text_are_one_id_as_in_a_pool() -> None:
    assert id_key(1) == id_key("1") != id_key("2")


def test_a_directory_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "_temporary").mkdir()
    _write(tmp_path / "b" / "2.jsonl", [{"id": 3, "prompt": "c"}])
    _write(tmp_path / "1.jsonl", [{"id": 1, "prompt": "a"}, {"id": 2, "prompt": "b"}])
    for name in ("_temporary/0.jsonl", ".hidden.jsonl", "_SUCCESS", "README.txt"):
        (tmp_path / name).write_text("not a prompt")
    assert [row.id for row in read_prompts(tmp_path)] == [1, 2, 3]
    assert [row.id for row in read_prompts(tmp_path, limit=1)] == [1]


def test_folders_of_a_partitioned_directory_are_fields(tmp_path: Path) -> None:
    for folder in ("group=users%2F1", "group=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / folder).mkdir()
    _write(tmp_path / "group=users%2F1" / "a.jsonl", [{"id": 1, "prompt": "a"}])
    pq.write_table(
        pa.table({"id": [2], "prompt": ["b"]}), tmp_path / "group=__HIVE_DEFAULT_PARTITION__" / "a.parquet"
    )
    assert {row.id: row.metadata for row in read_prompts(tmp_path)} == {1: {"dare_group": "users/1"}, 2: {}}


def test_a_bad_row_of_a_directory_is_named_by_its_file(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", [{"id": 1, "prompt": "a"}])
    _write(tmp_path / "b.jsonl", [{"id": 1}])
    with pytest.raises(DareError, match=r"b.jsonl, row 1 needs either a `prompt`"):
        list(read_prompts(tmp_path))


def test_a_directory_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DareError, match="holds no prompt files"):
        list(read_prompts(tmp_path))
