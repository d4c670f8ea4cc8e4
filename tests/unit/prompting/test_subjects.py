"""What is known of users and items, beside what plain loops find."""

import random

import numpy as np
import pytest

from vllm_dare.prompting.subjects import Choice, Item, User, items_of, users_with_history
from vllm_dare.prompting.tables import Interactions, ItemTable, UserTable

ITEMS = ItemTable(
    ids=["a", "b", "c"],
    titles=["A", "B", "C"],
    attributes={"genre": [("x",), (), ("y", "z")]},
    texts={"blurb": ["about A", "", ""]},
)
A, B, C = (
    Item("a", "A", {"genre": ("x",)}, {"blurb": "about A"}),
    Item("b", "B", {"genre": ()}, {"blurb": ""}),
    Item("c", "C", {"genre": ("y", "z")}, {"blurb": ""}),
)


def _interactions(histories: dict[str, list[tuple[int, bool]]], rated: bool = True) -> Interactions:
    pairs = [pair for history in histories.values() for pair in history]
    return Interactions(
        user_ids=list(histories),
        starts=np.cumsum([0, *map(len, histories.values())]),
        items=np.array([place for place, _ in pairs], np.int64),
        liked=np.array([liked for _, liked in pairs], bool) if rated else None,
        liking="rating >= 4" if rated else None,
        timed=True,
        unknown=0,
        repeated=0,
    )


def test_a_user() -> None:
    users = UserTable(["9", "u"], {"age": [("30",), ("25",)]})
    found = _interactions({"u": [(0, True), (1, False), (2, True)], "w": [(0, True)]})
    first, second = users_with_history(found, ITEMS, users)
    assert first == User(
        "u", {"age": ("25",)}, (Choice(A, True), Choice(B, False), Choice(C, True)), ("genre",)
    )
    assert (first.liked, first.disliked, first.rated) == ([A, C], [B], True)
    assert second.attributes == {}


def test_without_ratings_everything_is_chosen() -> None:
    (user,) = users_with_history(_interactions({"u": [(2, True), (0, True)]}, rated=False), ITEMS)
    assert user.history == (Choice(C, None), Choice(A, None))
    assert (user.liked, user.disliked, user.rated) == ([C, A], [], False)


@pytest.mark.parametrize("cap", [1, 2, 5, 50])
@pytest.mark.parametrize("least", [1, 3, 10])
def test_caps_as_plain_loops_find_them(cap: int, least: int) -> None:
    rng = random.Random(cap * 100 + least)
    table = ItemTable([str(i) for i in range(30)], [f"T{i}" for i in range(30)], {}, {})
    histories = {
        f"u{number}": [(place, rng.random() < 0.5) for place in rng.sample(range(30), rng.randrange(0, 15))]
        for number in range(40)
    }
    found = list(users_with_history(_interactions(histories), table, None, cap, least))
    expected = {
        user: [(str(place), liked) for place, liked in history][-cap:]
        for user, history in histories.items()
        if len(history) >= least
    }
    assert {u.id: [(c.item.id, c.liked) for c in u.history] for u in found} == expected
    assert [user.id for user in found] == list(expected)


def test_items() -> None:
    assert list(items_of(ITEMS)) == [A, B, C]
    found = _interactions({"u": [(0, True), (2, False)], "v": [(2, True)]})
    assert list(items_of(ITEMS, found, 1)) == [A, C]
    assert list(items_of(ITEMS, found, 2)) == [C]
