"""What a request says about itself, for the router; quick to import, as every front end does."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """What a request says about itself; every field may be missing.

    Attributes:
        group: the group, named explicitly.
        user, item: ids that the assignments may know.
        history: ids of items that the user dealt with.
        attributes: (name, value) pairs, of the user or of the item; a name may have several values.
    """

    group: str | None = None
    user: str | None = None
    item: str | None = None
    history: Sequence[str] = ()
    attributes: Sequence[tuple[str, str]] = ()
