"""A tiny tokenizer, and pools built with it."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from vllm_dare.pool.build import BuildReport, build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.tokenizer import TokenizerInfo, load_tokenizer, tokenizer_info

WORDS = ("[UNK]", "a", "b", "c", "likes", "films", "about", "space", "war", ".")


def save_tokenizer(path: Path, words: Iterable[str]) -> Path:
    path.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a tokenizer of ten words."""
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", WORDS))


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "others", WORDS[:-1]))


@pytest.fixture(scope="session")
def info(tokenizer: str) -> TokenizerInfo:
    return tokenizer_info(load_tokenizer(tokenizer), tokenizer)


@pytest.fixture
def make_pool(tokenizer: str, tmp_path: Path) -> Callable[..., tuple[Path, BuildReport]]:
    """Builds a pool of (id, text, group) triples."""

    def make(
        name: str, rows: Iterable[tuple[str, str, str | None]], **options: Any
    ) -> tuple[Path, BuildReport]:
        documents = [Document(id=i, text=text, group=group) for i, text, group in rows]
        output = tmp_path / name
        return output, build_pool(documents, options.pop("tokenizer", tokenizer), output, **options)

    return make


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, rows: Iterable[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
