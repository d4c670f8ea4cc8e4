"""Stores of both kinds that can be written to, and pools of a tiny tokenizer."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.store_server import BUCKET, StoreServer, running_store
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.tokenizer import TokenizerInfo, load_tokenizer, tokenizer_info

MakePool = Callable[..., Path]


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with running_store() as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    request.getfixturevalue("server")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def s3_url(server: StoreServer) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's cache, empty."""
    monkeypatch.setenv("VLLM_DARE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a tokenizer of a hundred words, w0 to w99, and a few real ones."""
    words = [
        "[UNK]",
        *(f"w{n}" for n in range(100)),
        "a",
        "b",
        "c",
        "likes",
        "films",
        "about",
        "space",
        "war",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizers") / "words"
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    return str(path)


@pytest.fixture(scope="session")
def info(tokenizer: str) -> TokenizerInfo:
    return tokenizer_info(load_tokenizer(tokenizer), tokenizer)


@pytest.fixture
def make_pool(tokenizer: str, tmp_path: Path) -> MakePool:
    """Builds a pool of (id, text, group) triples."""

    def make(name: str, rows: Iterable[tuple[str, str, str | None]], **options: Any) -> Path:
        output = tmp_path / name
        output.parent.mkdir(parents=True, exist_ok=True)
        build_pool(
            [Document(id=i, text=text, group=group) for i, text, group in rows],
            tokenizer,
            tmp_path / name,
            **options,
        )
        return tmp_path / name

    return make
