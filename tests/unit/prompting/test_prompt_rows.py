"""Rows are those that `generate` reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_dare.errors import DareError, PoolError
from vllm_dare.generation.prompts import PromptRow, read_prompts
from vllm_dare.prompting.rows import RowMaker, read_groups
from vllm_dare.prompting.subjects import Choice, Item, Subject, User
from vllm_dare.request import ANY_ENGINE, RequestOptions

WriteTable = Callable[[str, str], Path]
ITEM = Item("i7", "A", {"genres": ("x", "y"), "year": ()}, {"blurb": "long"})
USER = User("42", {}, (Choice(Item("9", "B", {}, {}), True), Choice(ITEM, False)), ("genres", "year"))
CHAT = [{"role": "user", "content": "Who?"}]


def _chat(subject: Subject) -> Any:
    return CHAT


def test_a_user() -> None:
    assert RowMaker("own", _chat).row(USER) == {"id": "u42", "messages": CHAT, "user": "42"}
    full = RowMaker("own", _chat, {"42": "users/3"}, 128, routing=True)
    assert full.row(USER) == {
        "id": "u42",
        "messages": CHAT,
        "user": "42",
        "group": "users/3",
        "history": ["9", "i7"],
        "max_tokens": 128,
    }


def test_an_item() -> None:
    full = RowMaker("own", lambda subject: "What?", {"42": "users/3"}, routing=True)
    assert full.row(ITEM) == {
        "id": "ii7",
        "prompt": "What?",
        "item": "i7",
        "attributes": {"genres": ["x", "y"]},
    }


def test_rows_as_generate_reads_them(write: WriteTable) -> None:
    rows = [RowMaker("own", _chat, {"42": "users/3"}, 5).row(USER), RowMaker("own", _chat).row(ITEM)]
    path = write("p.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_prompts(path)) == [
        PromptRow("u42", CHAT, {"dare_user": "42", "dare_group": "users/3"}, 5),
        PromptRow("ii7", CHAT, {"dare_item": "i7"}),
    ]


def test_a_router_finds_what_it_needs(write: WriteTable) -> None:
    maker = RowMaker("own", _chat, routing=True)
    path = write("p.jsonl", "".join(json.dumps(maker.row(subject)) + "\n" for subject in (USER, ITEM)))
    queries = [RequestOptions.parse(row.metadata, ANY_ENGINE).query for row in read_prompts(path)]
    assert [(query.user, query.history) for query in queries] == [("42", ("9", "i7")), (None, ())]
    assert (queries[1].item, queries[1].attributes) == ("i7", (("genres", "x"), ("genres", "y")))


def test_groups(write: WriteTable, tmp_path: Path) -> None:
    path = write("groups.csv", "user,group\n42,users/3\n007,users/1\n")
    assert read_groups(path, "users") == {"42": "users/3", "007": "users/1"}
    with pytest.raises(DareError, match=r"groups.csv says nothing of items; .* columns item and group"):
        read_groups(path, "items")
    pq.write_table(pa.table({"user": [42], "group": ["users/3"]}), tmp_path / "assignments.parquet")
    assert read_groups(tmp_path, "users") == {"42": "users/3"}
    pq.write_table(pa.table({"item": ["a"], "group": [3]}), tmp_path / "assignments.parquet")
    assert read_groups(tmp_path, "items") == {"a": "3"}


def test_groups_that_cannot_be_read(write: WriteTable, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"is a directory without assignments.parquet"):
        read_groups(tmp_path, "users")
    with pytest.raises(PoolError, match=r"There is no file or directory .*nodir"):
        read_groups(tmp_path / "nodir", "users")
    with pytest.raises(PoolError, match=r"groups.csv:2 is no assignment"):
        read_groups(write("groups.csv", "user,group\n42,\n"), "users")
