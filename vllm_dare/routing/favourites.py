"""What each group likes more than others do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_dare.routing.interactions import Positives, read_ids
from vllm_dare.tables import ITEM_NAMES, column_names, pick_column, read_columns

_COUNT = 5


@dataclass(frozen=True)
class Favourite:
    """An item that a group likes.

    Attributes:
        item: its id.
        title: what to call it; the id if it has no title.
        share: of the group's users who like it.
        lift: this share over that of all users.
    """

    item: str
    title: str
    share: float
    lift: float


def read_titles(path: Path, title_column: str) -> dict[str, str]:
    """Item id to title, from a table with an item column (or id).

    Raises:
        DareError: the file cannot be read, or a column is not there.
    """
    names = column_names(path)
    item = pick_column(path, names, "a column called item", None, (*ITEM_NAMES, "id"))
    pick_column(path, names, "--title-column", title_column, ())
    table = read_columns(path, [item, title_column], texts=[item, title_column])
    places, ids = read_ids(path, item, table[item])
    titles = table[title_column].to_pylist()
    return {ids[place]: str(title) for place, title in zip(places, titles, strict=True) if title}


def favourites(
    positives: Positives, labels: np.ndarray, num_groups: int, titles: Mapping[str, str]
) -> list[list[Favourite]]:
    """The five items of each group that tell it apart the most.

    With s the share of the group's users who like an item and t that of all users, these are the items with
    the largest s log(s / t), which passes over what everybody likes and what hardly anybody knows.

    Args:
        positives: who liked what.
        labels: int32[users], those with positive interactions first; -1 for no group.
        num_groups: how many groups there are.
        titles: item id to title.
    """
    groups = labels[positives.users]
    counted = groups >= 0
    cells = groups[counted].astype(np.int64) * positives.num_items + positives.items[counted]
    counts = np.bincount(cells, minlength=num_groups * positives.num_items).reshape(num_groups, -1)
    of_all = counts.sum(axis=0) / max(1, (labels >= 0).sum())
    sizes = np.bincount(labels[labels >= 0], minlength=num_groups)
    found = []
    for group in range(num_groups):
        share = counts[group] / max(1, sizes[group])
        lift = share / np.where(of_all > 0, of_all, 1)
        tells = share * np.log(np.where(lift > 0, lift, 1))
        best = [item for item in np.argsort(-tells, kind="stable")[:_COUNT] if tells[item] > 0]
        ids = [positives.item_ids[item] for item in best]
        found.append(
            [
                Favourite(name, titles.get(name, name), float(share[item]), float(lift[item]))
                for item, name in zip(best, ids, strict=True)
            ]
        )
    return found
