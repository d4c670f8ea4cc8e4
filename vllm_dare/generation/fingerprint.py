"""Tell whether a file was written from these prompt rows, without keeping the rows."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from vllm_dare.errors import DareError
from vllm_dare.generation.prompts import PromptRow

_BITS = 256


class Fingerprint:
    """The number of rows and the sum of their digests: the same rows in another order are the same.

    Args:
        before: an earlier run's `record`, to be compared with the first rows of this one.
    """

    def __init__(self, before: Any = None) -> None:
        rows = before.get("rows") if isinstance(before, dict) else None
        self._compared_rows = rows
        self._compared: dict[str, Any] | None = None
        self._rows = self._sum = 0

    def watch(self, rows: Iterator[PromptRow]) -> Iterator[PromptRow]:
        """Pass ``rows`` on and take them in."""
        for row in rows:
            self.add(digest(row))
            yield row

    def add(self, digest: bytes) -> None:
        """Take in one more row by its `digest`."""
        self._sum = (self._sum + int.from_bytes(digest, "big")) % 2**_BITS
        self._rows += 1
        if self._rows == self._compared_rows:
            self._compared = self.record()

    def record(self) -> dict[str, Any]:
        """What to keep beside the output, as JSON values."""
        return {"rows": self._rows, "sha256_sum": f"{self._sum:0{_BITS // 4}x}"}

    def difference(self, before: Any) -> str | None:
        """How the rows differ from those of an earlier `record`; rows added at the end are no difference."""
        if before in (self.record(), self._compared):
            return None
        rows = before.get("rows") if isinstance(before, dict) else None
        if rows == self._rows:
            return "the prompts (other rows then)"
        return f"the prompts ({rows} rows then, {self._rows} now)"


def digest(row: PromptRow) -> bytes:
    """What a fingerprint knows of a row, 32 bytes.

    Raises:
        DareError: the row is nested too deeply.
    """
    try:
        text = json.dumps(
            [row.id, row.prompt, dict(row.metadata), row.max_tokens], sort_keys=True, default=str
        )
    except RecursionError:
        raise DareError(f"The row with the id {row.id!r} is nested too deeply.") from None
    return hashlib.sha256(text.encode()).digest()
