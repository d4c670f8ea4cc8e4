"""Which values a text states."""

from pathlib import Path

import numpy as np
import pytest

from vllm_dare.errors import DareError
from vllm_dare.evaluation.attributes import Vocabulary, make_vocabulary, read_vocabulary, stated

GENRES = ["Action", "Adventure", "Children's", "Comedy", "Film-Noir", "Musical", "Sci-Fi", "War"]


@pytest.fixture
def genres() -> Vocabulary:
    return make_vocabulary({genre: () for genre in GENRES})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("They like comedies and ACTION.", ["Comedy", "Action"]),
        ("action/adventure movies", ["Action", "Adventure"]),
        ("science fiction, sci-fi, sci fi and scifi", ["Sci-Fi"]),
        ("science, and some fiction", []),
        ("children's films, films for children", ["Children's"]),
        ("the children\u2019s favourites", ["Children's"]),
        ("film noir, or just noir", ["Film-Noir"]),
        ("warm colours, the faction, wary", []),
        ("wars; the war's end", ["War"]),
        ("a musical score like no other", []),
        ("musicals with a musical score", ["Musical"]),
        ("comedy, action, comedy", ["Comedy", "Action"]),
        ("", []),
    ],
)
def test_values_are_found_in_the_order_of_their_first_mention(
    genres: Vocabulary, text: str, values: list[str]
) -> None:
    assert [GENRES[i] for i in genres.stated(text)] == values


def test_many_texts_are_a_matrix(genres: Vocabulary) -> None:
    found = stated(genres, ["war and comedy", "nothing"])
    assert [GENRES[i] for i in np.flatnonzero(found.sets[0])] == ["Comedy", "War"]
    assert found.first.tolist() == [GENRES.index("War"), -1]
    assert not found.sets[1].any()


def test_the_longer_of_two_phrases_counts() -> None:
    vocabulary = make_vocabulary({"Comedy": (), "Romantic comedy": ()})
    assert vocabulary.stated("a romantic comedy") == [1]
    assert vocabulary.stated("a dark comedy") == [0]


def test_a_file_has_synonyms_and_phrases_that_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "values.tsv"
    path.write_text("Rock\trock and roll, !rock bottom\n\nJazz\n", encoding="utf-8")
    vocabulary = read_vocabulary(path)
    assert vocabulary.values == ["Rock", "Jazz"]
    assert vocabulary.stated("at rock bottom") == []
    assert vocabulary.stated("jazz, then Rock and Roll") == [1, 0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "no value"), ("Comedy\ncomedies\n", "would state both"), ("Comedy\t!?\n", "has no word")],
)
def test_a_vocabulary_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    path = tmp_path / "values.tsv"
    path.write_text(content)
    with pytest.raises(DareError, match=sentence):
        read_vocabulary(path)
    with pytest.raises(DareError, match="cannot be read"):
        read_vocabulary(tmp_path / "nowhere")
