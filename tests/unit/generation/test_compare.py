"""How alike two runs are."""

from typing import Any

import pytest

from vllm_dare.generation.compare import Agreement, agreement


def _row(row_id: str, *token_ids: int, finish_reason: str = "stop") -> dict[str, Any]:
    return {"id": row_id, "token_ids": list(token_ids), "finish_reason": finish_reason}


def test_identical_runs_agree_in_any_order() -> None:
    rows = [_row("a", 1, 2), _row("b", 3)]
    assert agreement(rows, rows[::-1]) == Agreement(2, 1.0, 1.0)


def test_tokens_after_the_first_difference_do_not_count() -> None:
    found = agreement([_row("a", 1, 2, 3, 4), _row("b", 5, 6)], [_row("a", 1, 9, 3, 4), _row("b", 5, 6)])
    assert found.same_texts == 0.5
    assert found.same_leading_tokens == pytest.approx((1 + 2) / (4 + 2))


def test_a_shorter_text_agrees_in_part() -> None:
    assert agreement([_row("a", 1, 2, 3, 4)], [_row("a", 1, 2)]).same_leading_tokens == 0.5


def test_failed_rows_are_left_out() -> None:
    found = agreement([_row("a", 1), _row("b", finish_reason="error")], [_row("a", 1), _row("b", 2)])
    assert found == Agreement(1, 1.0, 1.0)


def test_nothing_to_compare() -> None:
    assert agreement([], []) == Agreement(0, 0.0, 0.0)
