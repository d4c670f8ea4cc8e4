"""JSON of pool files, which somebody may have made up: a small file must not become a large structure.

A list of nothing takes three bytes of JSON and a hundred in memory. What a pool writes has few values and
long names, so that a bound on the number of values keeps honest files, and keeps the rest small.
"""

import re
from typing import Any

from pydantic_core import from_json

# A string, even one that never ends, or what begins a value.
_STRING_OR_VALUE = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)|[\[{,]', re.DOTALL)


def parse_json(content: bytes | str, most_values: int) -> Any:
    """Parse JSON; half a surrogate pair, deep nesting and numbers of thousands of digits are errors.

    Args:
        content: the text, in UTF-8.
        most_values: how many values it may hold, lists and objects and what is in them.

    Raises:
        ValueError: it is not valid JSON, or holds more.
    """
    data = content.encode() if isinstance(content, str) else content
    if sum(map(data.count, (b"[", b"{", b","))) >= most_values:  # quick, but counts what is in strings, too
        _check_number_of_values(data, most_values)
    return from_json(data, allow_inf_nan=False, cache_strings="none")


def _check_number_of_values(data: bytes, most_values: int) -> None:
    number = 1
    for found in _STRING_OR_VALUE.finditer(data):
        number += data[found.start()] != ord('"')
        if number > most_values:
            raise ValueError("it holds too many values")
