"""Where a pool is: a directory, or the URL of an object store."""

import re
from pathlib import Path
from typing import Any

# `file:/mnt/pool` is a URL, too; a directory may have a colon in its name.
_URL = re.compile(r"^(file:|[a-z][a-z0-9+.-]*://)")


def is_url(location: str) -> bool:
    """Whether this names an object store rather than a directory."""
    return _URL.match(location) is not None


def read_location(value: Any) -> Path | str | None:
    """A setting's value as a path, or as it is if it is a URL.

    Raises:
        ValueError: it is neither.
    """
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("a directory or a URL is needed")
    return value if is_url(value) else Path(value)
