"""Whom prompts are about, and what is said of the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.errors import DareError
from vllm_dare.prompting.selection import Tables, select

WriteTable = Callable[[str, str], Path]


def test_users(items_csv: Path, clicks_csv: Path, users_csv: Path) -> None:
    found = select(Tables(items_csv, clicks_csv, users_csv), "users", history=2)
    users = list(found.subjects)
    assert [user.id for user in users] == ["7", "8", "9"] and found.total == 3
    assert [choice.item.title for choice in users[0].history] == ["Old Maps, New Roads", 'The "Quiet" Ledger']
    assert [user.attributes for user in users] == [
        {"age": ("25",), "gender": ("F",)},
        {},
        {"age": ("31",), "gender": ()},
    ]
    assert found.notes == [
        "What has rating >= 4 counts as liked (40% of all).",
        f"1 users are not in {users_csv}; their prompts show what they chose only.",
    ]


def test_items(items_csv: Path, clicks_csv: Path) -> None:
    everything = select(Tables(items_csv), "items")
    assert [item.id for item in everything.subjects] == ["1", "2", "3", "4"]
    assert (everything.total, everything.notes) == (4, [])
    chosen = select(Tables(items_csv, clicks_csv), "items", min_interactions=2)
    assert [item.id for item in chosen.subjects] == ["2"] and chosen.total == 1
    assert chosen.notes[-1] == "3 items have fewer than 2 interactions and are left out."


def test_what_is_left_out_is_said(write: WriteTable) -> None:
    items = write("items.csv", "id,title\n1,A\n2,\n3,C\n")
    clicks = write("clicks.csv", "user,item,label\nu,1,1\nu,2,1\nv,8,0\nv,9,0\nu,1,0\nu,3,1\n")
    users = write("users.csv", "id,age\nu,25\nw,31\nx,32\n")
    found = select(Tables(items, clicks, users), "users", min_interactions=2)
    assert [user.id for user in found.subjects] == ["u"] and found.total == 1
    assert found.notes == [
        "1 items have no title and are left out; the first is row 2 (id 2).",
        f"3 interactions are left out: their items are not in {items}, or have no title there.",
        "1 interactions gave way to a later one with the same item.",
        "What has label >= 1 counts as liked (50% of all).",
        "There is no time column: each user's rows are taken to be in the order of time.",
        f"2 users of {users} have no interaction and are left out.",
        f"1 users are not in {users}; their prompts show what they chose only.",
        "1 users have fewer than 2 interactions and are left out.",
    ]


def test_what_cannot_work(write: WriteTable, items_csv: Path, clicks_csv: Path, users_csv: Path) -> None:
    with pytest.raises(DareError, match="Prompts about users need --interactions"):
        select(Tables(items_csv), "users")
    with pytest.raises(DareError, match="items have no use for --users"):
        select(Tables(items_csv, users=users_csv), "items")
    with pytest.raises(DareError, match=r"None of the users has 4 interactions .* \(the most is 3\); lower"):
        select(Tables(items_csv, clicks_csv), "users", min_interactions=4)
    others = write("others.csv", "id,age\n70,25\n")
    with pytest.raises(
        DareError, match=r"No user of .*others.csv \(such as 70\) is in .* \(with such as 7\)"
    ):
        select(Tables(items_csv, clicks_csv, others), "users")
