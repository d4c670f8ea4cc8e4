"""How prompts show what is known."""

import pytest

from vllm_dare.prompting.subjects import Choice, Item, User
from vllm_dare.prompting.wording import answer_fields, item_facts, name_of, one_message, shortened, user_facts

LEDGER = Item(
    "1",
    'The "Quiet" Ledger',
    {"genres": ("Mystery", "Noir"), "release_year": ("1999",)},
    {"blurb": "A clerk."},
)
TRAIN = Item("2", "The Late Train", {"genres": (), "release_year": ("1987",)}, {"blurb": ""})
BARE = Item("3", "Cold Harbour", {}, {})


def _user(*choices: tuple[Item, bool | None], **attributes: tuple[str, ...]) -> User:
    return User("7", attributes, tuple(Choice(*choice) for choice in choices), ("genres", "release_year"))


def test_a_rated_user() -> None:
    user = _user((TRAIN, False), (LEDGER, True), (BARE, True), age=("25",), favourite_places=("sea", "hills"))
    assert user_facts(user) == (
        "Age: 25\nFavourite places: sea, hills\n\n"
        "Liked, oldest first:\n"
        '- The "Quiet" Ledger (genres: Mystery, Noir; release year: 1999)\n'
        "- Cold Harbour\n\n"
        "Disliked, oldest first:\n"
        "- The Late Train (release year: 1987)"
    )


def test_a_user_without_ratings_and_with_texts() -> None:
    user = _user((TRAIN, None), (LEDGER, None), gender=())
    assert user_facts(user, 50) == (
        "Chosen, oldest first:\n"
        "- The Late Train (release year: 1987)\n"
        '- The "Quiet" Ledger (genres: Mystery, Noir; release year: 1999): A clerk.'
    )


def test_a_user_who_liked_nothing() -> None:
    assert user_facts(_user((BARE, False))) == "Disliked, oldest first:\n- Cold Harbour"


def test_an_item() -> None:
    assert item_facts(LEDGER) == (
        'Title: The "Quiet" Ledger\nGenres: Mystery, Noir\nRelease year: 1999\nBlurb: A clerk.'
    )
    assert item_facts(TRAIN) == "Title: The Late Train\nRelease year: 1987"
    assert item_facts(BARE) == "Title: Cold Harbour"


def test_fields_of_an_answer_are_named_once() -> None:
    fields = answer_fields(["genres", "release_year", "Moods"], ["genre", "plot", "mood"])
    assert fields == ["genres", "release year", "Moods", "plot"]


@pytest.mark.parametrize(
    ("text", "characters", "short"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two …"),
        ("one, two three", 4, "one …"),
        ("one two three", 7, "one two …"),
        ("unbreakable", 4, "unbr …"),
        ("", 0, ""),
    ],
)
def test_shortened(text: str, characters: int, short: str) -> None:
    assert shortened(text, characters) == short


def test_small_pieces() -> None:
    assert name_of("Release__year ") == "Release year"
    assert one_message("a", "", "b") == [{"role": "user", "content": "a\n\nb"}]
