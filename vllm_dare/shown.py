"""Values that somebody else made up, as messages show them: one line, short, whatever they are."""

import reprlib
from typing import Any

_MOST_CHARACTERS = 60


class _Short(reprlib.Repr):
    """Looks at the beginning of a value alone: all of a deep or long one may be too much to write down."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 2 * _MOST_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write down an integer of more than 4300 digits."""
        return repr(x) if -(2**64) < x < 2**64 else "an integer of more than 64 bits"


_short = _Short()


def shown(value: Any) -> str:
    """A value as Python writes it, cut to 60 characters."""
    text = _short.repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}…"


def shown_name(name: str) -> str:
    """A name as it is if it is short and plain, else as `shown`."""
    return name if len(name) <= _MOST_CHARACTERS and name.isprintable() else shown(name)
