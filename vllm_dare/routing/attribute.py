"""Groups of items by the values of an attribute: one group a value, or as a map says."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_dare.errors import DareError
from vllm_dare.routing.item_values import ItemValues
from vllm_dare.routing.router_file import Rule

OTHER = "other"
_LAST = 2**31 - 1
_MAX_NAME = 200


@dataclass(frozen=True)
class ItemGroups:
    """Items in groups.

    Attributes:
        group_of: item id to group; items without values are not there.
        sizes: group to its number of items, the biggest first.
        values: each value to the group that it stands for.
        ranks: value to rank: of an item's values the one with the lowest counts, of equal ones the first.
        merged: the values that were too rare for a group of their own, sorted.
        without: ids of the items without values.
    """

    group_of: Mapping[str, str]
    sizes: Mapping[str, int]
    values: Mapping[str, str]
    ranks: Mapping[str, int]
    merged: Sequence[str]
    without: Sequence[str]


def group_items(
    items: Sequence[ItemValues],
    *,
    rule: Rule = "largest",
    min_size: int = 1,
    prefix: str = "items/",
    value_map: Mapping[str, str] | None = None,
) -> ItemGroups:
    """Put every item that has a value into one group.

    Args:
        items: see `read_item_values`.
        rule: which of an item's several groups it goes to: that of the value given first ("first"), or the
            one that the fewest ("rarest") or the most items could go to ("largest").
        min_size: at least 1; groups of fewer items are given up, the smallest first: their items go to their
            next group by the rule, and those that have none to the group "other".
        prefix: what every group's name begins with.
        value_map: value to the group's name without the prefix; None: the value is the name.

    Raises:
        DareError: a group's name cannot be used, or no group has ``min_size`` items.
    """
    value_map = value_map or {value: value for item in items for value in item.values}
    name_of = {value: _name(prefix, value, group) for value, group in value_map.items()}
    candidates = {
        item.id: list(dict.fromkeys(name_of[value] for value in item.values)) for item in items if item.values
    }
    other = prefix + OTHER
    could_go = Counter(group for groups in candidates.values() for group in groups)
    ranks = {group: {"first": 0, "rarest": size, "largest": -size}[rule] for group, size in could_go.items()}
    ranks |= {group: _LAST for group, size in could_go.items() if size < min_size and group != other}
    members = _fill(candidates, ranks, min_size, other)
    group_of = {item: group for group, items in members.items() for item in items}
    sizes = {group: len(items) for group, items in members.items() if items}
    if set(sizes) == {other} and other not in could_go:
        raise DareError(
            f"No group has {min_size} items; give a lower --min-size, or a --map to fewer groups."
        )
    stands_for = {value: name if name in sizes else other for value, name in name_of.items()}
    return ItemGroups(
        group_of={item: group_of[item] for item in candidates},
        sizes=dict(sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))),
        values=stands_for,
        ranks={value: ranks.get(name, _LAST) for value, name in name_of.items()},
        merged=sorted(value for value, name in name_of.items() if stands_for[value] != name),
        without=[item.id for item in items if not item.values],
    )


def _fill(
    candidates: Mapping[str, Sequence[str]], ranks: dict[str, int], min_size: int, other: str
) -> dict[str, list[str]]:
    """The items of each group; gives the groups up that stay below ``min_size``, in ``ranks`` too."""
    members: dict[str, list[str]] = {group: [] for group, rank in ranks.items() if rank < _LAST}
    moved: Iterable[str] = candidates
    while True:
        for item in moved:
            members.setdefault(_choose(candidates[item], ranks, other), []).append(item)
        least = min((len(items) for group, items in members.items() if group != other), default=min_size)
        if least >= min_size:
            return members
        # The smallest alone, as their items may be what others lack.
        given_up = [group for group in members if group != other and len(members[group]) == least]
        ranks |= dict.fromkeys(given_up, _LAST)
        moved = [item for group in given_up for item in members.pop(group)]


def _choose(groups: Sequence[str], ranks: Mapping[str, int], other: str) -> str:
    best = min(groups, key=ranks.__getitem__)
    return best if ranks[best] < _LAST else other


def _name(prefix: str, value: str, group: str) -> str:
    name = prefix + group
    if not name.isprintable() or name != name.strip() or len(name) > _MAX_NAME:
        raise DareError(
            f"The value {value[:_MAX_NAME]!r} would make a group {name[:_MAX_NAME]!r}, but names of groups "
            f"are at most {_MAX_NAME} printable characters without blanks around; name it with --map."
        )
    return name
