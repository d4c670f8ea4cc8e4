"""Reading a corpus and its split."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from vllm_dare.errors import DareError
from vllm_dare.evaluation.corpus import MISTRAL_V1, load_encoder, read_corpus
from vllm_dare.evaluation.split import read_split

WORDS = ("[UNK]", "a", "b", "c")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("words")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return str(folder)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_token_ids_groups_and_prompts(tmp_path: Path, tokenizer: str) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"id": 1, "text": "a b", "group": "g", "prompt": "c"},
        {"id": "2", "token_ids": [3, 2, 1], "genres": ["x"]},
        {"id": 3, "text": ""},
    )
    corpus = read_corpus([path], tokenizer)
    assert list(corpus.texts) == ["1", "2"]
    one, two = corpus.texts.values()
    assert (one.output.tolist(), one.prompt.tolist(), one.group) == ([1, 2], [3], "g")
    assert (two.output.tolist(), two.prompt.tolist(), two.group) == ([3, 2, 1], [], None)
    assert corpus.num_empty == 1
    assert corpus.tokenizer.vocab_size == 4
    assert not len(read_corpus([path], tokenizer, prompts=False).texts["1"].prompt)


def test_prompts_of_parquet_files(tmp_path: Path, tokenizer: str) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"id": [1, 2], "text": ["a", "b"], "prompt": ["c", None]})
    parquet.write_table(table, tmp_path / "d.parquet")
    corpus = read_corpus([tmp_path / "d.parquet"], tokenizer)
    assert [text.prompt.tolist() for text in corpus.texts.values()] == [[3], []]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"id": 1, "text": "a"}], "holds one document with text"),
        ([{"id": 1, "text": ""}, {"id": 2, "text": ""}], "holds no document with text"),
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], r"d.jsonl:2 has the id '1', as .*d.jsonl:1 has"),
        ([{"id": 1, "text": "a", "prompt": 3}], "has a prompt that is not a string"),
        ([{"id": 1, "token_ids": [4]}], "has the token id 4, beyond the vocabulary"),
        ([{"id": 1}], "neither text nor token_ids"),
    ],
)
def test_a_corpus_that_cannot_be_used(
    tmp_path: Path, tokenizer: str, rows: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(DareError, match=sentence):
        read_corpus([write(tmp_path / "d.jsonl", *rows)], tokenizer)


def test_a_tokenizer_that_is_none_is_told_of_all_kinds(tmp_path: Path) -> None:
    with pytest.raises(DareError, match=r"give a hub id, or a directory .* mistral-v1 is a tokenizer, too"):
        load_encoder(str(tmp_path / "nowhere"))


def test_the_tokenizer_that_mistral_common_carries() -> None:
    pytest.importorskip("mistral_common")
    encoder = load_encoder(MISTRAL_V1)
    assert encoder.info.vocab_size == 32000
    assert encoder.encode(["Hello there", ""]) == [[22557, 736], []]


IDS = [str(i) for i in range(10)]


def split_file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    return path


def test_the_pair_of_lists_that_fits_is_taken(tmp_path: Path) -> None:
    users, items = (
        {"train_users": list(range(7)), "test_users": [7, 8, 9]},
        {
            "train_items": list(range(0, 40, 5)),
            "test_items": [1, 2],
        },
    )
    path = split_file(tmp_path, users | items)
    split = read_split(path, IDS)
    assert (split.train_key, split.test_key) == ("train_users", "test_users")
    assert split.train == IDS[:7] and split.test == IDS[7:] and split.num_missing == 0
    split = read_split(path, [*map(str, range(0, 40, 5)), "1"])
    assert split.train_key == "train_items" and split.test == ["1"] and split.num_missing == 1


def test_lists_are_taken_by_name_in_their_order(tmp_path: Path) -> None:
    path = split_file(tmp_path, {"pool": [3, 1, 2], "held": [5]})
    split = read_split(path, IDS, "pool", "held")
    assert split.train == ["3", "1", "2"] and split.test == ["5"]


GOOD = {"train_users": [1, 2], "test_users": [3]}


@pytest.mark.parametrize(
    ("content", "keys", "sentence"),
    [
        ([1], (None, None), "is not an object"),
        ({"train_users": [1]}, (None, None), "No pair of lists train_X and test_X"),
        ({"train_users": [77], "test_users": [78]}, (None, None), "No pair of lists"),
        (GOOD | {"train_items": [1, 2], "test_items": [3]}, (None, None), "fit several lists .* choose with"),
        (GOOD, ("train_users", None), "go together"),
        (GOOD, ("pool", "test_users"), "has no list 'pool'"),
        (GOOD | {"test_users": [2]}, (None, None), "the id '2' under 'train_users' and 'test_users'"),
        (GOOD | {"train_users": [1, 1]}, (None, None), "the id '1' twice under 'train_users'"),
        (GOOD | {"test_users": []}, (None, None), "0 have a document"),
        (GOOD | {"test_users": [3, 70, 71]}, (None, None), "Of the 3 ids under 'test_users' .*, 1 have"),
    ],
)
def test_a_split_that_cannot_be_used(
    tmp_path: Path, content: Any, keys: tuple[str | None, str | None], sentence: str
) -> None:
    with pytest.raises(DareError, match=sentence):
        read_split(split_file(tmp_path, content), IDS, *keys)


def test_a_split_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DareError, match="There is no split file"):
        read_split(tmp_path / "nowhere.json", IDS)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DareError, match="is not valid JSON"):
        read_split(tmp_path / "bad.json", IDS)
