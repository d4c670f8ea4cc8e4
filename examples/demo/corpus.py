"""The synthetic corpus of the demo: invented users, invented titles, and texts about them.

A real LLM writes about similar users in similar words, and yet for each user in other ones. The corpus
imitates this: all that a text says follows from the prompt, and so, mostly, does the way in which it is
said (see `Voice`). Without that link, a model's greedy text would be the same for a whole taste group.
"""

import random
import re
import tomllib
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LEXICON: dict[str, Any] = tomllib.loads((HERE / "lexicon.toml").read_text())
TEMPLATES: dict[str, Any] = tomllib.loads((HERE / "templates.toml").read_text())
GROUPS = tuple(LEXICON["groups"])

FIRMNESS = 0.85
"""How often a wording follows from the prompt; the rest is chance, and gives sampled texts their variety."""

CATALOG_PER_GROUP = 44
HISTORY_LENGTH = 5
DETOUR_SHARE = 0.4


@dataclass(frozen=True)
class Item:
    """An invented book or movie, with the tags that its prompt shows."""

    id: str
    group: str
    title: str
    kind: str
    year: int
    subgenre: str
    setting: str
    mood: str
    theme: str

    @property
    def tags(self) -> tuple[str, str, str, str]:
        """What decides whether somebody likes the item."""
        return self.subgenre, self.setting, self.mood, self.theme


@dataclass(frozen=True)
class User:
    """An invented person, the taste group, and the titles they liked."""

    id: str
    group: str
    occupation: str
    age: str
    habit: str
    history: tuple[Item, ...]


@dataclass(frozen=True)
class Example:
    """One prompt and, for training, the text that answers it."""

    id: str
    group: str
    prompt: str
    text: str


# --- Wording -------------------------------------------------------------------------------------------


class Voice:
    """Chooses wordings: mostly by a fixed rule from what the prompt shows, at times by chance."""

    def __init__(self, features: tuple[str, ...], rng: random.Random) -> None:
        self.features = features
        self.rng = rng

    def choose(self, options: list[str], key: str) -> str:
        """Pick one option; `key` names the place in the text, and decides which feature rules there."""
        if self.rng.random() > FIRMNESS:
            return self.rng.choice(options)
        feature = self.features[zlib.crc32(key.encode()) % len(self.features)]
        return options[zlib.crc32(f"{key}/{feature}".encode()) % len(options)]

    def sentence(self, templates: list[str], key: str, slots: dict[str, str]) -> str:
        """Fill one of the templates of a section."""
        template = self.choose(templates, key)
        place = f"{key}:{templates.index(template)}"
        while match := re.search(r"\[([^\]]*)\]", template):
            wording = self.choose(match[1].split("|"), f"{place}:{match.start()}")
            template = template[: match.start()] + wording + template[match.end() :]
        sentence = template.format_map(slots)
        return sentence[0].upper() + sentence[1:]


def spell_out(voice: Voice, group: str, tags: dict[str, str]) -> dict[str, str]:
    """The phrases for an item's or a user's tags, and for what the whole group likes."""
    lexicon = LEXICON["groups"][group]
    slots = {name: voice.choose(lexicon[name], name) for name in ("genre", "visual", "writing")}
    for slot, tag in tags.items():
        table = LEXICON["moods"] if slot == "mood" else lexicon[TABLE_OF_SLOT[slot]]
        slots[slot] = voice.choose(table[tag], tag)
    return slots


TABLE_OF_SLOT = {"subgenre": "subgenres", "second": "subgenres", "setting": "settings", "theme": "themes"}


# --- Items ---------------------------------------------------------------------------------------------


def make_item(group: str, number: int, title: str, rng: random.Random) -> Item:
    """Give a title its year and tags."""
    lexicon = LEXICON["groups"][group]
    return Item(
        id=f"{group}-{number:02d}",
        group=group,
        title=title,
        kind=rng.choice(["book", "movie"]),
        year=rng.randint(1961, 2024),
        subgenre=rng.choice(list(lexicon["subgenres"])),
        setting=rng.choice(list(lexicon["settings"])),
        mood=rng.choice(list(LEXICON["moods"])),
        theme=rng.choice(list(lexicon["themes"])),
    )


def make_items(rng: random.Random) -> tuple[list[Item], list[Item]]:
    """All items in two lists: the catalog, and a few held-out ones that nobody has in their history."""
    catalog, held_out = [], []
    for group in GROUPS:
        lexicon = LEXICON["groups"][group]
        titles = [
            f"The {adjective} {noun}" for adjective in lexicon["adjectives"] for noun in lexicon["nouns"]
        ]
        rng.shuffle(titles)
        items = [make_item(group, number, title, rng) for number, title in enumerate(titles)]
        catalog += items[:CATALOG_PER_GROUP]
        held_out += items[CATALOG_PER_GROUP : CATALOG_PER_GROUP + 5]
    return catalog, held_out


def item_prompt(item: Item) -> str:
    """What the model is asked about an item."""
    return (
        "Write a description of this item.\n"
        f"Title: {item.title}\nKind: {item.kind}\nYear: {item.year}\n"
        f"Genre: {LEXICON['groups'][item.group]['label']}\nTags: {', '.join(item.tags)}\nDescription:\n"
    )


def item_text(item: Item, rng: random.Random) -> str:
    """A description, as a model would write it."""
    voice = Voice((item.kind, *item.tags), rng)
    tags = {"subgenre": item.subgenre, "setting": item.setting, "mood": item.mood, "theme": item.theme}
    slots = spell_out(voice, item.group, tags)
    slots |= {"title": item.title, "kind": item.kind, "year": str(item.year)}
    middle = ["plots", "setting", "mood", f"style_{item.kind}", "themes"]
    if voice.choose(["plot first", "place first"], "item order") == "place first":
        middle[:2] = ["setting", "plots"]
    sections = TEMPLATES["item"]
    return " ".join(
        voice.sentence(sections[name], f"item {name}", slots) for name in ["opening", *middle, "closing"]
    )


# --- Users ---------------------------------------------------------------------------------------------


def make_history(group: str, catalog: list[Item], rng: random.Random) -> tuple[Item, ...]:
    """The titles that fit a hidden taste best, and for some users one title from another group."""
    own = [item for item in catalog if item.group == group]
    taste = set(make_item(group, 0, "", rng).tags)
    seen = rng.sample(own, 20)
    seen.sort(key=lambda item: -len(taste & set(item.tags)))
    history = seen[:HISTORY_LENGTH]
    if rng.random() < DETOUR_SHARE:
        history.append(rng.choice([item for item in catalog if item.group != group]))
    return tuple(history)


def make_user(user_id: str, group: str, catalog: list[Item], rng: random.Random) -> User:
    """An invented user of a taste group."""
    profile = TEMPLATES["profile"]
    return User(
        id=user_id,
        group=group,
        occupation=rng.choice(profile["occupation"]),
        age=rng.choice(profile["age"]),
        habit=rng.choice(profile["habit"]),
        history=make_history(group, catalog, rng),
    )


def user_prompt(user: User) -> str:
    """What the model is asked about a user: the profile and the liked titles with their tags."""
    lines = [
        f"- {item.title} ({LEXICON['groups'][item.group]['label']} {item.kind}: {', '.join(item.tags)})"
        for item in user.history
    ]
    return (
        "Write a preference analysis of this user.\n"
        f"Profile: {user.occupation}, {user.age}, {user.habit}\nLiked titles:\n"
        + "\n".join(lines)
        + "\nAnalysis:\n"
    )


def user_tags(user: User) -> dict[str, str]:
    """The tags that the history shows most often, and the second most frequent subgenre, if any."""
    own = [item for item in user.history if item.group == user.group]
    subgenres = [tag for tag, _ in Counter(item.subgenre for item in own).most_common(2)]
    tags = {"subgenre": subgenres[0]}
    if len(subgenres) > 1:
        tags["second"] = subgenres[1]
    for name in ("setting", "mood", "theme"):
        tags[name] = Counter(getattr(item, name) for item in own).most_common(1)[0][0]
    return tags


MIDDLE_ORDERS = [
    "plots second title mood setting visual writing themes detour",
    "plots second mood themes title setting visual writing detour",
    "setting mood plots second writing visual themes title detour",
]


def user_text(user: User, rng: random.Random) -> str:
    """A preference analysis, as a model would write it."""
    tags = user_tags(user)
    voice = Voice((user.occupation, user.age, user.habit, tags["mood"], tags["subgenre"]), rng)
    slots = spell_out(voice, user.group, tags)
    slots |= {"title": user.history[0].title, "habit": user.habit}
    if user.history[-1].group != user.group:
        slots["detour"] = LEXICON["groups"][user.history[-1].group]["label"]
    names = ["opening", *voice.choose(MIDDLE_ORDERS, "user order").split(), "closing"]
    needed = {"second", "detour"} - slots.keys()
    sections = TEMPLATES["user"]
    return " ".join(
        voice.sentence(sections[name], f"user {name}", slots) for name in names if name not in needed
    )


# --- Examples ------------------------------------------------------------------------------------------


def user_examples(prefix: int, count: int, catalog: list[Item], rng: random.Random) -> list[Example]:
    """Users in equal numbers from all groups, each with a prompt and a text."""
    examples = []
    for number in range(count):
        user = make_user(f"u{prefix + number}", GROUPS[number % len(GROUPS)], catalog, rng)
        examples.append(Example(user.id, f"users/{user.group}-fans", user_prompt(user), user_text(user, rng)))
    return examples


def item_examples(items: list[Item], rng: random.Random) -> list[Example]:
    """One prompt and one text for each item."""
    return [
        Example(item.id, f"items/{item.group}", item_prompt(item), item_text(item, rng)) for item in items
    ]
