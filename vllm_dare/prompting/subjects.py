"""What is known of one user or one item: all that a prompt may be made from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vllm_dare.prompting.tables import Interactions, ItemTable, UserTable

Attributes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Item:
    """One item.

    Attributes:
        id: as in the item table.
        title: on one line.
        attributes: column to values, such as ``{"genres": ("Drama", "War")}``; the same columns for all
            items, in the table's order, and ``()`` where an item has no value.
        texts: column to running text, such as a description; "" where an item has none.
    """

    id: str
    title: str
    attributes: Attributes
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """One thing that a user chose.

    Attributes:
        item: what.
        liked: whether it was rated well; None where there are no ratings.
    """

    item: Item
    liked: bool | None


@dataclass(frozen=True)
class User:
    """One user.

    Attributes:
        id: as in the interactions.
        attributes: column to values, such as ``{"age": ("25",)}``; empty if no user table
            knows them.
        history: the most recent choices, the oldest first, each item once.
        fields: the names of the items' attributes, the same for all users.
    """

    id: str
    attributes: Attributes
    history: tuple[Choice, ...]
    fields: tuple[str, ...]

    @property
    def liked(self) -> list[Item]:
        """What was rated well, the oldest first; everything where there are no ratings."""
        return [choice.item for choice in self.history if choice.liked is not False]

    @property
    def disliked(self) -> list[Item]:
        """What was rated badly, the oldest first."""
        return [choice.item for choice in self.history if choice.liked is False]

    @property
    def rated(self) -> bool:
        """Whether it is known what was liked."""
        return any(choice.liked is not None for choice in self.history)


Subject = User | Item


def users_with_history(
    interactions: Interactions,
    items: ItemTable,
    users: UserTable | None = None,
    history: int = 20,
    min_interactions: int = 1,
) -> Iterator[User]:
    """The users, in the order of their first interaction.

    Args:
        interactions: who chose what.
        items: the table that ``interactions`` was read with.
        users: what else is known of them.
        history: the most choices a user keeps, the most recent ones.
        min_interactions: users with fewer, of which each item counts once, are left out; from 1.
    """
    places = {} if users is None else {user_id: i for i, user_id in enumerate(users.ids)}
    fields = tuple(items.attributes)
    starts, found, liked = interactions.starts.tolist(), interactions.items, interactions.liked
    for number, user_id in enumerate(interactions.user_ids):
        start, end = starts[number], starts[number + 1]
        if end - start < min_interactions:
            continue
        recent = slice(max(start, end - history), end)
        opinions = [None] * (end - recent.start) if liked is None else liked[recent].tolist()
        choices = (
            Choice(item_at(items, place), opinion)
            for place, opinion in zip(found[recent].tolist(), opinions, strict=True)
        )
        attributes: Attributes = {}
        if users is not None and user_id in places:
            attributes = {name: cells[places[user_id]] for name, cells in users.attributes.items()}
        yield User(user_id, attributes, tuple(choices), fields)


def items_of(
    items: ItemTable, interactions: Interactions | None = None, min_interactions: int = 0
) -> Iterator[Item]:
    """The items, in the table's order.

    Args:
        items: the table.
        interactions: needed for ``min_interactions`` only.
        min_interactions: items with fewer, of which each user counts once, are left out.
    """
    counts = np.zeros(len(items.ids), np.int64)
    if interactions is not None:
        counts = np.bincount(interactions.items, minlength=len(items.ids))
    for place, count in enumerate(counts.tolist()):
        if count >= min_interactions:
            yield item_at(items, place)


def item_at(items: ItemTable, place: int) -> Item:
    """The item in a row of the table."""
    return Item(
        items.ids[place],
        items.titles[place],
        {name: cells[place] for name, cells in items.attributes.items()},
        {name: cells[place] for name, cells in items.texts.items()},
    )
