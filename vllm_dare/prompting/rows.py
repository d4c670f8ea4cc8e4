"""From a subject to the row that `vllm-dare generate` reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError
from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.assignments import EntityKind
from vllm_dare.pool.group_inputs import assignment_table
from vllm_dare.prompting.frameworks import About, Builder, prompt_fields
from vllm_dare.prompting.subjects import Subject, User

_KINDS: Mapping[About, EntityKind] = {"users": "user", "items": "item"}


@dataclass(frozen=True)
class RowMaker:
    """Makes rows.

    Attributes:
        framework: its name, for messages.
        builder: what makes the prompts.
        groups: id to group; None leaves groups out.
        max_tokens: each row's limit; None leaves it to the run.
        routing: whether rows say what a router needs for subjects that no group is known of.
    """

    framework: str
    builder: Builder
    groups: Mapping[str, str] | None = None
    max_tokens: int | None = None
    routing: bool = False

    def row(self, subject: Subject) -> dict[str, Any]:
        """``id`` (u42 or i42), ``prompt`` or ``messages``, ``user`` or ``item``, and what else is asked for.

        Raises:
            DareError: the framework failed, see `prompt_fields`.
        """
        kind = "user" if isinstance(subject, User) else "item"
        row = {"id": f"{kind[0]}{subject.id}", **prompt_fields(self.builder, self.framework, subject)}
        row[kind] = subject.id
        if self.groups is not None and subject.id in self.groups:
            row["group"] = self.groups[subject.id]
        if self.routing and isinstance(subject, User):
            row["history"] = [choice.item.id for choice in subject.history]
        elif self.routing:
            row["attributes"] = {name: list(values) for name, values in subject.attributes.items() if values}
        if self.max_tokens is not None:
            row["max_tokens"] = self.max_tokens
        return row


def read_groups(path: Path, about: About) -> dict[str, str]:
    """The group of each user, or of each item.

    Args:
        path: a table of assignments (see `read_assignments`), or a directory with ``assignments.parquet``.
        about: whose groups.

    Raises:
        DareError: it cannot be read, or has no group of a user (an item).
    """
    file = assignment_table(path)
    groups = {entity: group for kind, entity, group in read_assignments(file) if kind == _KINDS[about]}
    if not groups:
        raise DareError(
            f"{file} says nothing of {about}; give a table with the columns {_KINDS[about]} and group."
        )
    return groups
