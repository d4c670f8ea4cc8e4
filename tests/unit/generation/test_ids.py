"""Row ids: compact membership, and no id twice."""

import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation import ids
from vllm_dare.generation.ids import IdSet, check_unique
from vllm_dare.generation.prompts import PromptRow, RowId


def _rows(*row_ids: RowId) -> list[PromptRow]:
    return [PromptRow(row_id, "p", {}) for row_id in row_ids]


def test_membership() -> None:
    found = IdSet(["a", 1, "ü", -5])
    assert len(found) == 4
    assert all(row_id in found for row_id in ("a", 1, "ü", -5))
    assert not any(row_id in found for row_id in ("2", "b", 5, ""))
    assert "a" not in IdSet()


def test_unique_ids_are_counted() -> None:
    rows = _rows("a", *range(1, 1000))
    assert check_unique(rows, iter(rows), "p.jsonl") == 1000


def test_the_second_row_of_an_id_is_named() -> None:
    rows = _rows("a", "b", "a")
    with pytest.raises(DareError, match=r'p.jsonl, row 3 repeats the id "a"'):
        check_unique(rows, iter(rows), "p.jsonl")


def test_a_number_and_its_text_are_duplicates() -> None:
    rows = _rows("1", 1)
    with pytest.raises(DareError, match=r"row 2 repeats the id 1"):
        check_unique(rows, iter(rows), "p.jsonl")


def test_equal_hashes_of_different_ids_are_no_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_hash", lambda row_id: 42)
    rows = _rows("a", "b")
    assert check_unique(rows, iter(rows), "p.jsonl") == 2
