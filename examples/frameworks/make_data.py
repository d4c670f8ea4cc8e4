"""Write the example's tables: invented users, books and films, and who chose what (the same on every run)."""

import csv
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

from corpus import GROUPS, LEXICON, TEMPLATES, Item, make_item  # noqa: E402

ITEMS_OF_GROUP = 5
USERS = 120
CHOICES = range(6, 10)
OWN_GENRE_SHARE = 0.6
FIRST_TIME = 1_700_000_000  # Unix time
WEEK = 7 * 24 * 3600


def main() -> None:
    rng = random.Random(2024)
    items = [item for group in GROUPS for item in items_of(group, rng)]
    rows = [row for number in range(USERS) for row in choices_of(f"{number + 1}", number, items, rng)]
    rng.shuffle(rows)  # tables seldom come in the order of time
    profile = TEMPLATES["profile"]
    people = [[number + 1, *(rng.choice(profile[name]) for name in profile)] for number in range(USERS)]
    write("users.csv", ["user_id", *profile], people)
    write("items.csv", ["item_id", "title", "kind", "year", "genre", "tags"], map(item_row, items))
    write("interactions.csv", ["user_id", "item_id", "rating", "timestamp"], rows)


def items_of(group: str, rng: random.Random) -> list[Item]:
    """Some books and films of a genre."""
    words = LEXICON["groups"][group]
    titles = [f"The {adjective} {noun}" for adjective in words["adjectives"] for noun in words["nouns"]]
    return [
        make_item(group, number, title, rng)
        for number, title in enumerate(rng.sample(titles, ITEMS_OF_GROUP), start=1)
    ]


def item_row(item: Item) -> list[Any]:
    """A row of the item table."""
    genre = LEXICON["groups"][item.group]["label"]
    return [item.id, item.title, item.kind, item.year, genre, "|".join(item.tags)]


def choices_of(user: str, number: int, items: list[Item], rng: random.Random) -> list[list[Any]]:
    """What a user chose and how they rated it: mostly their own genre, which they mostly like."""
    own = GROUPS[number % len(GROUPS)]
    weights = [1 - OWN_GENRE_SHARE] * len(items)
    for place, item in enumerate(items):
        if item.group == own:
            weights[place] = OWN_GENRE_SHARE * len(GROUPS)
    chosen: dict[str, list[Any]] = {}
    time = FIRST_TIME + rng.randrange(WEEK)
    count = rng.choice(CHOICES)
    while len(chosen) < count:
        item = rng.choices(items, weights)[0]
        time += rng.randrange(1, WEEK)
        rating = rng.choice([4, 5, 5] if item.group == own else [1, 2, 3, 4])
        chosen.setdefault(item.id, [user, item.id, rating, time])
    return list(chosen.values())


def write(name: str, columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table beside this script."""
    with (HERE / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


if __name__ == "__main__":
    main()
