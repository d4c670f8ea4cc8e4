"""The prompts of the frameworks, and what a framework of one's own may return."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import DareError
from vllm_dare.prompting.frameworks import FRAMEWORKS, load_builder, prompt_fields
from vllm_dare.prompting.subjects import Choice, Item, Subject, User

DOCS = Path(__file__).parents[3] / "docs" / "frameworks.md"
LONG = "A clerk finds a ledger that nobody kept. " * 12
LEDGER = Item(
    "1", 'The "Quiet" Ledger {x}', {"genres": ("Mystery", "Noir"), "year": ("1999",)}, {"blurb": LONG.strip()}
)
TRAIN = Item("2", "The Late Train", {"genres": ("Drama",), "year": ()}, {"blurb": ""})
USER = User("7", {"age": ("25",)}, (Choice(TRAIN, False), Choice(LEDGER, True)), ("genres", "year"))
OTHER = User("8", {}, (Choice(TRAIN, None),), ("genres", "year"))
ALL = [(name, about) for name in FRAMEWORKS for about in ("users", "items")]


def _content(framework: str, about: str, subject: Subject) -> str:
    (message,) = FRAMEWORKS[framework][about](subject)  # type: ignore[index]
    assert message.keys() == {"role", "content"} and message["role"] == "user"
    return str(message["content"])


@pytest.mark.parametrize(("framework", "about"), ALL)
def test_prompts_show_what_is_known(framework: str, about: str) -> None:
    content = _content(framework, about, USER if about == "users" else LEDGER)
    shown = ['The "Quiet" Ledger {x}', "Mystery, Noir", "1999"]
    shown += ["Age: 25", "The Late Train", "Disliked"] if about == "users" else [LONG.strip()]
    assert [text for text in shown if text not in content] == []


@pytest.mark.parametrize(("framework", "about"), ALL)
def test_instructions_come_first_and_are_the_same_for_all(framework: str, about: str) -> None:
    one, other = (USER, OTHER) if about == "users" else (LEDGER, TRAIN)
    first, second = _content(framework, about, one), _content(framework, about, other)
    same = "".join(
        a for a, _ in itertools.takewhile(lambda p: p[0] == p[1], zip(first, second, strict=False))
    )
    assert len(same) > 500
    assert "ranking model" in same or "recommender" in same, "what the answer is for"
    assert "Rules:" in same and ("at most" in same or "At most" in same)


@pytest.mark.parametrize("framework", ["kar", "trawl"])
@pytest.mark.parametrize("about", ["users", "items"])
def test_factors_are_the_items_attributes_and_more(framework: str, about: str) -> None:
    content = _content(framework, about, USER if about == "users" else LEDGER)
    assert "actors: genres, year, theme, " in content


@pytest.mark.parametrize("about", ["users", "items"])
def test_rlmrec_asks_for_json(about: str) -> None:
    content = _content("rlmrec", about, USER if about == "users" else LEDGER)
    assert '\n{"summary": "...", "reasoning": "..."}\n' in content


@pytest.mark.parametrize(
    ("framework", "characters"), [("kar", 0), ("once", 0), ("trawl", 160), ("rlmrec", 300)]
)
def test_how_much_of_items_texts_users_prompts_show(framework: str, characters: int) -> None:
    content = _content(framework, "users", USER)
    assert ("A clerk finds" in content) == bool(characters)
    if characters:
        text = content[content.index("A clerk finds") :].split(" …")[0]
        assert characters - 20 < len(text) <= characters


def test_the_documentations_example_is_the_prompt() -> None:
    items = [
        Item("1", "The Crooked Staircase", {"genre": ("mystery",), "kind": ("movie",)}, {}),
        Item("2", "The Distant Horizon", {"genre": ("science fiction",), "kind": ("book",)}, {}),
        Item("3", "The Paper Verdict", {"genre": ("mystery",), "kind": ("book",)}, {}),
    ]
    choices = tuple(Choice(item, liked) for item, liked in zip(items, (True, False, True), strict=True))
    user = User("42", {"age": ("30s",)}, choices, ("genre", "kind"))
    assert f"```text\n{_content('kar', 'users', user)}\n```" in DOCS.read_text(encoding="utf-8")


def test_the_documentations_own_framework_works(tmp_path: Path) -> None:
    code = DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    name = f"{tmp_path / 'own.py'}:build"
    build = load_builder(name, "users")
    assert 'Someone liked The "Quiet" Ledger {x}.' in prompt_fields(build, name, USER)["prompt"]
    assert "The Late Train" in prompt_fields(build, name, TRAIN)["messages"][0]["content"]


def test_every_framework_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in FRAMEWORKS if f"`{name}`" not in text] == []


def test_an_unknown_framework_lists_those_there_are() -> None:
    with pytest.raises(
        DareError, match="no framework 'kra'; there are kar, once, trawl, rlmrec, or give your"
    ):
        load_builder("kra", "users")


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]


@pytest.mark.parametrize(
    ("made", "fields"), [("Who?", {"prompt": "Who?"}), (MESSAGES, {"messages": MESSAGES})]
)
def test_what_may_be_returned(made: Any, fields: dict[str, Any]) -> None:
    assert prompt_fields(lambda subject: made, "own", USER) == fields


@pytest.mark.parametrize(
    "made",
    [
        None,
        "",
        " \n",
        7,
        [],
        ["Who?"],
        {"role": "user", "content": "Who?"},
        [{"role": "user"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": "Who?", "extra": object()}],
        ({"role": "user", "content": "Who?"},),
    ],
)
def test_what_may_not_be_returned_names_the_subject(made: Any) -> None:
    with pytest.raises(DareError, match=r"framework own returned .* for user 7; return a text, or a list of"):
        prompt_fields(lambda subject: made, "own", USER)


def test_a_long_wrong_value_is_shown_in_part() -> None:
    with pytest.raises(DareError) as error:
        prompt_fields(lambda subject: list(range(1000)), "own", LEDGER)
    assert "for item 1" in str(error.value) and len(str(error.value)) < 250


def test_a_failure_names_the_subject_on_one_line() -> None:
    def build(subject: Subject) -> str:
        raise LookupError("no\nsuch thing")

    with pytest.raises(DareError, match=r"own failed for item 1 \(LookupError: no such thing\); mend it"):
        prompt_fields(build, "own", LEDGER)
