"""How prompts show what is known: one item a line, so that quotation marks in titles need no care."""

from collections.abc import Iterable, Sequence

from vllm_dare.prompting.subjects import Attributes, Item, User

Messages = list[dict[str, str]]


def one_message(*parts: str) -> Messages:
    """A chat of one user message: parts that are not empty, an empty line between them.

    What is the same for all subjects should come first, so that engines that cache prefixes read it once. A
    system message would do no more, and some models' chat templates refuse one.
    """
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]


def name_of(column: str) -> str:
    """A column's name as words: ``release_year`` is "release year"."""
    return " ".join(column.replace("_", " ").split())


def answer_fields(columns: Iterable[str], general: Iterable[str]) -> list[str]:
    """The fields that an answer shall have: the items' own attributes, then the general ones not among them.

    "genre" and "Genres" are the same field.
    """
    fields: dict[str, str] = {}
    for field in (*map(name_of, columns), *general):
        fields.setdefault(field.lower().removesuffix("s"), field)
    return list(fields.values())


def attribute_lines(attributes: Attributes) -> str:
    """One line for each attribute that has a value."""
    return "\n".join(f"{_capital(name_of(name))}: {', '.join(v)}" for name, v in attributes.items() if v)


def item_facts(item: Item) -> str:
    """All that is known of an item: title, attributes and texts, one a line."""
    texts = "\n".join(f"{_capital(name_of(name))}: {text}" for name, text in item.texts.items() if text)
    parts = (f"Title: {item.title}", attribute_lines(item.attributes), texts)
    return "\n".join(part for part in parts if part)


def user_facts(user: User, text_characters: int = 0) -> str:
    """All that is known of a user: attributes, and the titles liked and disliked, the oldest first.

    Args:
        user: the user.
        text_characters: how much of the items' texts is shown beside them.
    """
    liked = "Liked" if user.rated else "Chosen"
    parts = (
        attribute_lines(user.attributes),
        _titles(f"{liked}, oldest first:", user.liked, text_characters),
        _titles("Disliked, oldest first:", user.disliked, text_characters),
    )
    return "\n\n".join(part for part in parts if part)


def shortened(text: str, characters: int) -> str:
    """The beginning of a text, cut between words and marked with an ellipsis if there is more."""
    if len(text) <= characters:
        return text
    words = text[: characters + 1].rpartition(" ")[0].rstrip(" ,.;:")
    return f"{words or text[:characters]} …"


def _titles(heading: str, items: Sequence[Item], text_characters: int) -> str:
    return "\n".join([heading, *(_title_line(item, text_characters) for item in items)]) if items else ""


def _title_line(item: Item, text_characters: int) -> str:
    details = [f"{name_of(name)}: {', '.join(v)}" for name, v in item.attributes.items() if v]
    line = f"- {item.title}" + (f" ({'; '.join(details)})" if details else "")
    texts = " ".join(text for text in item.texts.values() if text)
    return f"{line}: {shortened(texts, text_characters)}" if texts and text_characters else line


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
