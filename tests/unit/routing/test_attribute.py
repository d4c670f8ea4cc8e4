from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.errors import DareError
from vllm_dare.routing.attribute import ItemGroups, group_items
from vllm_dare.routing.item_values import ItemValues
from vllm_dare.routing.query import Query
from vllm_dare.routing.router import Router
from vllm_dare.routing.router_file import RULES, RouterFile, write_item_router

FILMS = {
    "1": ("Drama", "War"),
    "2": ("Drama",),
    "3": ("War", "Drama"),
    "4": ("Drama", "Odd"),
    "5": ("Odd",),
    "6": (),
    "7": ("Comedy", "War"),
    "8": ("Comedy",),
}


def films(content: Mapping[str, Sequence[str]] = FILMS) -> list[ItemValues]:
    return [ItemValues(item, tuple(values)) for item, values in content.items()]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("first", "Drama Drama War Drama Odd Comedy Comedy"),
        ("rarest", "War Drama War Odd Odd Comedy Comedy"),  # Odd and Comedy 2, War 3, Drama 4
        ("largest", "Drama Drama Drama Drama Odd War Comedy"),
    ],
)
def test_an_item_with_several_values_goes_by_the_rule(rule: Any, expected: str) -> None:
    groups = group_items(films(), rule=rule)
    assert groups.group_of == {
        item: f"items/{value}" for item, value in zip("1234578", expected.split(), strict=True)
    }
    assert groups.without == ["6"]
    assert not groups.merged
    assert groups.sizes == Counter(groups.group_of.values())
    assert list(groups.sizes.values()) == sorted(groups.sizes.values(), reverse=True)


@pytest.mark.parametrize(
    ("rule", "min_size", "merged", "expected"),
    [
        ("first", 2, ["Odd", "War"], "Drama Drama Drama Drama other Comedy Comedy"),
        ("largest", 2, ["Comedy", "Odd", "War"], "Drama Drama Drama Drama other other other"),
        ("rarest", 3, ["Comedy", "Drama", "Odd"], "War other War other other War other"),
    ],
)
def test_small_groups_give_way_to_the_next_that_fits(
    rule: Any, min_size: int, merged: list[str], expected: str
) -> None:
    groups = group_items(films(), rule=rule, min_size=min_size)
    assert groups.merged == merged
    assert groups.group_of == {
        item: f"items/{value}" for item, value in zip("1234578", expected.split(), strict=True)
    }


def test_a_map_joins_values_and_may_have_more_than_there_are() -> None:
    value_map = {
        "Drama": "serious",
        "War": "serious",
        "Odd": "odd",
        "Comedy": "fun",
        "Western": "fun",
        "New": "x",
    }
    groups = group_items(films(), value_map=value_map, prefix="")
    assert groups.sizes == {"serious": 5, "fun": 1, "odd": 1}
    assert groups.values == {**value_map, "New": "other"}


def test_a_value_that_is_called_other_shares_its_group_with_the_rare() -> None:
    groups = group_items(
        films({"1": ["other"], "2": ["rare", "other"], "3": ["rare"], "4": ["other"]}), min_size=3
    )
    assert groups.sizes == {"items/other": 4}


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ({"1": ["a\nb"]}, {}, r"The value 'a\\nb' would make a group .* name it with --map"),
        ({"1": ["a"]}, {"value_map": {"a": "b "}}, "The value 'a' would make a group 'items/b '"),
        ({"1": ["a" * 300]}, {}, "at most 200 printable characters"),
        ({"1": ["a"]}, {"prefix": " items/"}, "without blanks around"),
        ({"1": ["a"], "2": ["b"]}, {"min_size": 2}, "No group has 2 items; give a lower --min-size"),
    ],
)
def test_what_makes_no_groups_is_refused(
    content: Mapping[str, Sequence[str]], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DareError, match=reason):
        group_items(films(content), **options)


def _oracle(groups: ItemGroups, values: Sequence[str], rule: str, could_go: Mapping[str, int]) -> str:
    """By what is said of the rules, given which values have a group."""
    kept = [value for value in values if value not in groups.merged]
    if not kept:
        return "items/other"
    key = {"first": lambda _: 0, "rarest": lambda v: could_go[v], "largest": lambda v: -could_go[v]}[rule]
    return f"items/{min(kept, key=key)}"


item_values = st.lists(st.sampled_from("abcdef"), unique=True, max_size=4)


@given(st.lists(item_values, min_size=1, max_size=40), st.sampled_from(RULES), st.integers(1, 6))
@settings(max_examples=150)
def test_groups_are_as_the_rule_says_and_the_router_repeats_them(
    tmp_path_factory: pytest.TempPathFactory,
    lists: list[list[str]],
    rule: Literal["first", "rarest", "largest"],
    min_size: int,
) -> None:
    content = {str(number): values for number, values in enumerate(lists)}
    try:
        groups = group_items(films(content), rule=rule, min_size=min_size)
    except DareError:
        return
    could_go = Counter(value for values in lists for value in values)
    path = write_item_router(
        tmp_path_factory.mktemp("r"),
        groups=sorted({*groups.sizes, *groups.values.values()}) or ["items/other"],
        attribute="letter",
        values=groups.values,
        ranks=groups.ranks,
        rule=rule,
    )
    router = Router(None, [RouterFile.open(path)])
    for item, values in content.items():
        expected = _oracle(groups, values, rule, could_go) if values else None
        assert groups.group_of.get(item) == expected
        assert router.route(Query(attributes=[("letter", value) for value in values])).group == expected
    for group, size in groups.sizes.items():
        assert size >= min_size or group == "items/other"
    assert sum(groups.sizes.values()) + len(groups.without) == len(content)
