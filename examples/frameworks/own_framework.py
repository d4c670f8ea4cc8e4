"""A framework of one's own: the two prompts that the demo model was trained on.

vllm-dare prompts --framework examples/frameworks/own_framework.py:build --about users …
"""

from vllm_dare.prompting.subjects import Item, Subject, User

LIKED = 6


def build(subject: Subject) -> str:
    """The prompt of a user or an item, as plain text; a list of chat messages would do as well."""
    return user_prompt(subject) if isinstance(subject, User) else item_prompt(subject)


def user_prompt(user: User) -> str:
    """The profile, and the titles that the user liked last."""
    profile = ", ".join(value for values in user.attributes.values() for value in values)
    titles = "".join(title_line(item) for item in user.liked[-LIKED:])
    return (
        f"Write a preference analysis of this user.\nProfile: {profile}\nLiked titles:\n{titles}Analysis:\n"
    )


def title_line(item: Item) -> str:
    """A title, with what it is."""
    (genre,), (kind,), tags = (item.attributes[name] for name in ("genre", "kind", "tags"))
    return f"- {item.title} ({genre} {kind}: {', '.join(tags)})\n"


def item_prompt(item: Item) -> str:
    """The title and its attributes."""
    facts = "".join(f"{name.capitalize()}: {', '.join(values)}\n" for name, values in item.attributes.items())
    return f"Write a description of this item.\nTitle: {item.title}\n{facts}Description:\n"
