"""Tables that the tests of prompts share."""

from collections.abc import Callable
from pathlib import Path

import pytest

WriteTable = Callable[[str, str], Path]

ITEMS = """\
item_id,title,genres,year,description
1,"The ""Quiet"" Ledger",Mystery|Noir,1999,"A clerk finds a ledger that nobody kept, and reads on for hours."
2,"Old Maps, New Roads",Adventure,2004,
3,The Late Train,,1987,
4,Cold Harbour,Mystery,2011,
"""
CLICKS = """\
user_id,item_id,rating,timestamp
7,1,5,30
8,2,2,10
7,3,1,10
7,2,4,20
9,4,3,5
"""
USERS = "user_id,age,gender\n7,25,F\n9,31,\n"


@pytest.fixture
def items_csv(write: WriteTable) -> Path:
    """Four items with genres, a year and descriptions."""
    return write("items.csv", ITEMS)


@pytest.fixture
def clicks_csv(write: WriteTable) -> Path:
    """Five ratings of three users, not in the order of time."""
    return write("clicks.csv", CLICKS)


@pytest.fixture
def users_csv(write: WriteTable) -> Path:
    """Two of the users."""
    return write("users.csv", USERS)


@pytest.fixture
def write(tmp_path: Path) -> WriteTable:
    """Writes a table, given its name and text."""

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write
