"""Whom the prompts are about: the subjects that the tables hold, and what of the tables is left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.prompting.frameworks import About
from vllm_dare.prompting.subjects import Subject, items_of, users_with_history
from vllm_dare.prompting.tables import (
    Columns,
    Interactions,
    ItemTable,
    UserTable,
    read_interactions,
    read_items,
    read_users,
)


@dataclass(frozen=True)
class Tables:
    """The files, and how they are read.

    Attributes:
        items: the item table.
        interactions: who chose what; needed for users, and for items that have a certain number of them.
        users: what else is known of users; None if nothing is.
        columns: see `Columns`.
        min_weight: see `vllm_dare.prompting.tables.read_interactions`.
    """

    items: Path
    interactions: Path | None = None
    users: Path | None = None
    columns: Columns = field(default_factory=Columns)
    min_weight: float | None = None


@dataclass(frozen=True)
class Selection:
    """The subjects.

    Attributes:
        subjects: to be read once.
        total: how many.
        notes: sentences on what is left out, and on what counts as liked.
    """

    subjects: Iterator[Subject]
    total: int
    notes: Sequence[str]


def select(tables: Tables, about: About, history: int = 20, min_interactions: int = 1) -> Selection:
    """Read the tables and find the subjects.

    Args:
        tables: the files.
        about: users or items.
        history: the most choices a user keeps.
        min_interactions: subjects with fewer are left out; of items only where interactions are given.

    Raises:
        DareError: a table cannot be used, or no subject is left.
    """
    if about == "users" and tables.interactions is None:
        raise DareError("Prompts about users need --interactions: name the table of who chose what.")
    if about == "items" and tables.users is not None:
        raise DareError("Prompts about items have no use for --users; leave it out.")
    items = read_items(tables.items, tables.columns)
    notes = _item_notes(items)
    if tables.interactions is None:
        return Selection(items_of(items), len(items.ids), notes)
    interactions = read_interactions(tables.interactions, items, tables.columns, tables.min_weight)
    notes += _interaction_notes(interactions, tables)
    if about == "items":
        counts = np.bincount(interactions.items, minlength=len(items.ids))
        subjects: Iterator[Subject] = items_of(items, interactions, min_interactions)
    else:
        users = None
        if tables.users is not None:
            users = read_users(tables.users, tables.columns)
            notes += _user_notes(users, interactions, tables)
        counts = np.diff(interactions.starts)
        subjects = users_with_history(interactions, items, users, history, min_interactions)
    total = int((counts >= min_interactions).sum())
    if not total:
        raise DareError(
            f"None of the {about} has {min_interactions} interactions with known items (the most is "
            f"{counts.max()}); lower --min-interactions."
        )
    if few := len(counts) - total:
        notes.append(f"{few:,} {about} have fewer than {min_interactions} interactions and are left out.")
    return Selection(subjects, total, notes)


def _item_notes(items: ItemTable) -> list[str]:
    if not items.untitled:
        return []
    first = items.untitled[0]
    return [f"{len(items.untitled):,} items have no title and are left out; the first is {first}."]


def _interaction_notes(interactions: Interactions, tables: Tables) -> list[str]:
    notes = []
    if interactions.unknown:
        notes.append(
            f"{interactions.unknown:,} interactions are left out: their items are not in {tables.items}, or "
            "have no title there."
        )
    if interactions.repeated:
        notes.append(f"{interactions.repeated:,} interactions gave way to a later one with the same item.")
    if interactions.liked is not None:
        share = interactions.liked.mean()
        notes.append(f"What has {interactions.liking} counts as liked ({share:.0%} of all).")
    if not interactions.timed:
        notes.append("There is no time column: each user's rows are taken to be in the order of time.")
    return notes


def _user_notes(users: UserTable, interactions: Interactions, tables: Tables) -> list[str]:
    described, chose = set(users.ids), set(interactions.user_ids)
    if described.isdisjoint(chose):
        raise DareError(
            f"No user of {tables.users} (such as {users.ids[0]}) is in {tables.interactions} (with such as "
            f"{interactions.user_ids[0]}); check that both have the same user ids."
        )
    notes = []
    if silent := len(described - chose):
        notes.append(f"{silent:,} users of {tables.users} have no interaction and are left out.")
    if bare := len(chose - described):
        notes.append(f"{bare:,} users are not in {tables.users}; their prompts show what they chose only.")
    return notes
