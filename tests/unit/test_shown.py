import pytest

from vllm_dare.shown import shown, shown_name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (3, "3"),
        (10**5000, "an integer of more than 64 bits"),
        ("\ud800", r"'\ud800'"),
        (None, "None"),
    ],
    ids=["text", "number", "large number", "surrogate", "none"],
)
def test_short_values_are_written_in_full(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_and_deep_values_are_cut() -> None:
    deep: list[object] = []
    for _ in range(10**5):
        deep = [deep]
    for value in ("x" * 10**6, deep, list(range(10**6)), {str(i): i for i in range(10**4)}):
        assert len(shown(value)) <= 60


@pytest.mark.parametrize(
    ("name", "text"), [("dare_top", "dare_top"), ("a\nb", r"'a\nb'"), ("\ud800", r"'\ud800'")]
)
def test_plain_names_are_left_as_they_are(name: str, text: str) -> None:
    assert shown_name(name) == text
    assert len(shown_name("x" * 100)) <= 60
