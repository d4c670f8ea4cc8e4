"""A real server whose pool is in an S3 store: groups, new versions, learned text, and outages."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import read_documents
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.store.compact import compact
from vllm_dare.store.remote import Store
from vllm_dare.store.transfer import pull_pool, push_pool

from ..store_server import BUCKET, StoreServer, running_store
from .asking import texts_of
from .conftest import DEMO
from .server import metrics, running_server

pytestmark = pytest.mark.filterwarnings("default")

URL = f"s3://{BUCKET}/demo"


@pytest.fixture(scope="module")
def store() -> Iterator[StoreServer]:
    with running_store() as store:
        yield store


@pytest.fixture(scope="module")
def pools(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pool of thirty documents, whose fit finds that groups help, and one of all."""
    directory = tmp_path_factory.mktemp("pools")
    documents = list(read_documents([DEMO / "documents.jsonl"]))
    build_pool(documents[:30], demo_model, directory / "small")
    build_pool(documents, demo_model, directory / "big")
    return directory / "small", directory / "big"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="module")
def address(
    demo_model: str,
    store: StoreServer,
    pools: tuple[Path, Path],
    log: Path,
    cache: Path,
) -> Iterator[str]:
    push_pool(pools[0], URL)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_DARE_CACHE", str(cache))
        with running_server(demo_model, {"pool": URL, "draft_budget": "fixed", "live": {}}, log) as address:
            yield address


@pytest.fixture(scope="module")
def complete(address: str, demo_prompts: list[dict[str, Any]]) -> Callable[[], list[str]]:
    """Completes eight prompts of three groups at once."""
    groups = sorted({row["group"] for row in demo_prompts})[:3]
    rows = [row for row in demo_prompts if row["group"] in groups][:8]
    return lambda: texts_of(address, rows)


def work_until(
    complete: Callable[[], list[str]], is_so: Callable[[], bool], expected: list[str], what: str
) -> None:
    """Keep the server busy until something is so; no text changes meanwhile."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, what
        assert complete() == expected


def lines(log: Path, *words: str) -> int:
    return sum(all(word in line for word in words) for line in log.read_text().splitlines())


def test_groups_are_fetched_once_requests_ask_for_them(
    address: str, complete: Callable[[], list[str]], store: StoreServer, pools: tuple[Path, Path]
) -> None:
    assert store.fetched("segments") == 1  # everybody's text
    assert metrics(address)["vllm_dare_pool_groups"] == 0
    texts = complete()
    work_until(complete, lambda: metrics(address)["vllm_dare_pool_groups"] > 0, texts, "no group comes")
    assert complete() == texts
    assert metrics(address)["vllm_dare_accepted_tokens_total"] > 0
    with RetrievalPool.open(pools[0]) as pool:
        assert 1 < store.fetched("segments") < len(pool.manifest.segments)


def test_a_pushed_version_is_taken_up_under_load(
    address: str, complete: Callable[[], list[str]], pools: tuple[Path, Path]
) -> None:
    texts, small = complete(), metrics(address)["vllm_dare_pool_tokens"]
    push_pool(pools[1], URL, overwrite=True)
    work_until(
        complete,
        lambda: metrics(address)["vllm_dare_pool_tokens"] > 2 * small,
        texts,
        "the new version does not come",
    )
    assert complete() == texts
    assert metrics(address)["vllm_dare_errors_total"] == 0


def test_learned_text_becomes_part_of_the_pool_for_everybody(
    address: str,
    complete: Callable[[], list[str]],
    pools: tuple[Path, Path],
    cache: Path,
    tmp_path: Path,
) -> None:
    texts, before = complete(), metrics(address)["vllm_dare_pool_tokens"]
    store = Store(URL)
    work_until(complete, lambda: bool(store.files("live")), texts, "what is learned is not sent")
    report = compact(URL)
    assert report.num_new >= len(texts)
    work_until(
        complete,
        lambda: metrics(address)["vllm_dare_pool_tokens"] > before,
        texts,
        "the merged version does not come",
    )
    (outbox,) = cache.glob("*/outbox")
    work_until(
        complete, lambda: "000000000001" not in str(list(outbox.iterdir())), texts, "it is not forgotten here"
    )
    pull_pool(URL, tmp_path / "copy")
    with RetrievalPool.open(tmp_path / "copy") as pool, RetrievalPool.open(pools[1]) as pushed:
        pool.verify()
        assert pool.groups == pushed.groups
        counts = [sum(s.header.num_documents for s in one.global_segments()) for one in (pool, pushed)]
        assert counts[0] == counts[1] + report.num_new
    assert metrics(address)["vllm_dare_errors_total"] == 0


def test_serving_goes_on_without_the_store_and_recovers(
    address: str,
    complete: Callable[[], list[str]],
    pools: tuple[Path, Path],
    store: StoreServer,
    log: Path,
) -> None:
    texts, big = complete(), metrics(address)["vllm_dare_pool_tokens"]
    store.stop()
    try:
        work_until(
            complete,
            lambda: metrics(address)["vllm_dare_errors_total"] > 0,
            texts,
            "nobody notices that the store is gone",
        )
        accepted = metrics(address)["vllm_dare_accepted_tokens_total"]
        for _ in range(5):  # the store is looked at several times
            assert complete() == texts
            time.sleep(3)
        assert metrics(address)["vllm_dare_accepted_tokens_total"] > accepted
        assert lines(log, f"The store {URL} cannot be used") == 1
    finally:
        store.start()
    push_pool(pools[0], URL, overwrite=True)
    work_until(
        complete,
        lambda: metrics(address)["vllm_dare_pool_tokens"] < big / 2,
        texts,
        "the newer version does not come",
    )
    assert metrics(address)["vllm_dare_errors_total"] == 1
    assert lines(log, f"The store {URL} cannot be used") == 1
