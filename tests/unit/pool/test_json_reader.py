"""JSON that would become many times its size in memory is told from its beginning."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.pool.json_reader import parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{},:"\\'), inner),
)


def number_of_values(value: Any) -> int:
    """How many commas and opening brackets there are outside strings, and one."""
    if not isinstance(value, list | dict):
        return 1
    values = value.values() if isinstance(value, dict) else value
    return 1 + max(1, sum(map(number_of_values, values)))


@given(JSON, st.booleans())
def test_the_bound_is_exact(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    number = number_of_values(value)
    assert parse_json(text, number) == value
    assert parse_json(text.encode(), 10**6) == value
    if number > 1:
        with pytest.raises(ValueError, match="too many values"):
            parse_json(text, number - 1)


@pytest.mark.parametrize(
    "text",
    [
        '"\\ud800"',
        '["\\udc00x"]',
        "[" * 10**5,
        "9" * 5000,
        "NaN",
        "Infinity",
        "",
        "{",
        '{"a"',
        "\ufeff{}",
        "[1,]",
    ],
)
def test_what_is_no_valid_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text, 10**6)


def test_bytes_that_are_no_utf_8_are_an_error() -> None:
    with pytest.raises(ValueError):
        parse_json(b'"\xff"', 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: b'"' + b'\\"' * n + b"[,",
        lambda n: b'"' + b'\\"' * n + b"[,\\",
        lambda n: b'"' + b'[""' * n,
        lambda n: b'"[\\' * n,
    ],
)
def test_strings_without_an_end_are_searched_once(make: Callable[[int], bytes]) -> None:
    """Searched again from every quotation mark, these would take hours."""
    with pytest.raises(ValueError):
        parse_json(make(500_000), 1)
