"""What grouping users found, as JSON values and as tables."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_dare.routing.clustering import Clusters
from vllm_dare.routing.favourites import Favourite
from vllm_dare.routing.held_out import FEW, Placing
from vllm_dare.routing.interactions import Positives
from vllm_dare.routing.neighbours import NEIGHBOURS
from vllm_dare.routing.user_attributes import FEWEST_USERS, PRIOR

if TYPE_CHECKING:
    from rich.table import Table

    from vllm_dare.routing.user_groups import Plan

Record = Mapping[str, Any]

_SHOWN_FAVOURITES = 3
_MOST_ROWS = 40


def settings(plan: "Plan") -> dict[str, Any]:
    """How the groups were asked for; paths without their directories."""
    found = {name: value.name if isinstance(value, Path) else value for name, value in asdict(plan).items()}
    unused = {"output", "overwrite"} | ({"method"} if plan.embeddings else set())
    return {name: value for name, value in found.items() if name not in unused}


def data(positives: Positives, labels: np.ndarray, has_embedding: np.ndarray) -> dict[str, int]:
    """What was read, and who has a group.

    Args:
        positives: the interactions.
        labels: int32[users], -1 for no group.
        has_embedding: bool[users].
    """
    return {
        "rows": positives.num_rows,
        "negative_rows": positives.num_negative,
        "repeated_rows": positives.num_repeated,
        "pairs": len(positives.users),
        "items": positives.num_items,
        "users": positives.num_users,
        "users_without_positives": positives.num_users_without,
        "users_with_embedding_alone": len(labels) - positives.num_users,
        "users_placed_by_history": int(((labels >= 0) & ~has_embedding).sum()),
        "users_with_group": int((labels >= 0).sum()),
    }


def tried(silhouettes: Mapping[int, float]) -> list[dict[str, Any]]:
    """The numbers of groups among which one was chosen."""
    return [{"groups": count, "silhouette": _number(found)} for count, found in silhouettes.items()]


def quality(
    silhouette: float, overlap: float | None, clusters: Clusters, placing: Placing | None
) -> dict[str, Any]:
    """How good the groups are; None where there were too few users to tell."""
    shares = clusters.sizes / clusters.sizes.sum()
    return {
        "silhouette": _number(silhouette),
        "neighbour_overlap": overlap,
        "chance": float((shares**2).sum()),
        "merged_groups": clusters.num_merged,
        "new_users": None if placing is None else asdict(placing),
    }


def attributes(log_odds: Mapping[str, np.ndarray]) -> list[str]:
    """The attribute values that the router knows."""
    return [key for key in log_odds if key != PRIOR]


def groups(
    names: Sequence[str], labels: np.ndarray, liked: Sequence[Sequence[Favourite]]
) -> list[dict[str, Any]]:
    """Name, size and favourites of each group.

    Args:
        names: of the groups.
        labels: int32[users], places in names; -1 for no group.
        liked: the favourites of each group.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=len(names)).tolist()
    return [
        {"name": name, "users": size, "favourites": [asdict(item) for item in items]}
        for name, size, items in zip(names, sizes, liked, strict=True)
    ]


def encode(result: Record) -> str:
    """The content of a report file."""
    return json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def tables(result: Record) -> Iterator["Table"]:
    """The groups, and if their number was chosen among several, these."""
    from rich.markup import escape
    from rich.table import Table

    shown = result["groups"][:_MOST_ROWS]
    some = len(shown) < len(result["groups"])
    title = f"The {len(shown)} largest of {len(result['groups']):,} groups" if some else "Groups"
    table = Table("group", title=title, title_justify="left")
    table.add_column("users", justify="right")
    table.add_column("likes more than others do")
    for group in shown:
        liked = ", ".join(
            f"{item['title']} ({item['lift']:.1f}x)" for item in group["favourites"][:_SHOWN_FAVOURITES]
        )
        table.add_row(escape(group["name"]), f"{group['users']:,}", escape(liked))
    yield table
    if len(result["tried"]) > 1:
        table = Table(title="Silhouettes by number of groups", title_justify="left")
        values = []
        for row in result["tried"]:
            table.add_column(f"{row['groups']}", justify="right")
            values.append("" if row["silhouette"] is None else f"{row['silhouette']:.3f}")
        table.add_row(*values)
        yield table


def lines(result: Record) -> Iterator[str]:
    """What is to be said besides, a sentence or two a line."""
    found, good = result["data"], result["quality"]
    yield (
        f"{found['pairs']:,} positive pairs of {found['users']:,} users and {found['items']:,} items, from "
        f"{found['rows']:,} rows: {found['negative_rows']:,} are not positive, "
        f"{found['repeated_rows']:,} repeat a pair."
    )
    for key, what in (
        ("users_without_positives", "Users with no positive interaction, who have no group"),
        ("users_with_embedding_alone", "Users with an embedding and no positive interaction"),
        ("users_placed_by_history", "Users without an embedding, who went where their items route them"),
    ):
        if found[key]:
            yield f"{what}: {found[key]:,}."
    empty = (result["settings"]["groups"] or 0) - len(result["groups"]) - good["merged_groups"]
    if empty > 0:
        yield f"Groups that stayed empty, as there are not so many different users: {empty:,}."
    if good["merged_groups"]:
        yield f"Groups that were too small and went into the nearest one: {good['merged_groups']:,}."
    if good["silhouette"] is not None:
        yield f"Silhouette {good['silhouette']:.3f}."
    if good["neighbour_overlap"] is not None:
        yield (
            f"Of a user's {NEIGHBOURS} nearest, {good['neighbour_overlap']:.1%} are in the same group (by "
            f"chance {good['chance']:.1%})."
        )
    new = good["new_users"]
    if new is None:
        yield "Too few users to hold some out and see how well new ones are placed."
    else:
        yield (
            f"{new['num_users']:,} users took no part in clustering: {FEW} of their items route "
            f"{new['few']:.1%} of them to the group of their embedding, all their items {new['all']:.1%} (by "
            f"chance {new['chance']:.1%})."
        )
        if new["few"] < 2 * new["chance"]:
            yield (
                "That is hardly better than chance: what users like says little of these embeddings, so that "
                "new users' groups mean little, too; consider embeddings learned from the interactions."
            )
    if result["attributes"] is not None:
        yield (
            f"The router knows {len(result['attributes']):,} attribute values that {FEWEST_USERS} users or "
            "more have."
        )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
