"""Newer versions of the pool while a real server works."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import read_documents

from .asking import texts_of
from .conftest import DEMO
from .server import metrics, running_server

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def pool(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of three documents."""
    output = tmp_path_factory.mktemp("pools") / "pool"
    documents = list(read_documents([DEMO / "documents.jsonl"]))
    build_pool(documents[:3], demo_model, output)
    return output


@pytest.fixture(scope="module")
def address(demo_model: str, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with running_server(demo_model, {"pool": str(pool), "draft_budget": "fixed"}, log) as address:
        yield address


@pytest.fixture(scope="module")
def complete(address: str, demo_prompts: list[dict[str, Any]]) -> Callable[[], list[str]]:
    """Completes eight prompts at once."""
    return lambda: texts_of(address, demo_prompts[:8])


def work_until(complete: Callable[[], list[str]], address: str, name: str, expected: list[str]) -> None:
    """Keep the server busy until one of its metrics is above zero."""
    deadline = time.monotonic() + 60
    while metrics(address)[name] == 0:
        assert time.monotonic() < deadline, f"{name} stays 0"
        assert complete() == expected


def accepted_share(complete: Callable[[], list[str]], address: str) -> float:
    before = metrics(address)
    complete()
    after = metrics(address)
    accepted, drafted = (
        after[f"vllm_dare_{name}_total"] - before[f"vllm_dare_{name}_total"]
        for name in ("accepted_tokens", "draft_tokens")
    )
    return accepted / drafted


def test_a_newer_pool_is_taken_up_under_load_and_changes_no_text(
    demo_model: str, pool: Path, address: str, complete: Callable[[], list[str]]
) -> None:
    texts = complete()
    before = accepted_share(complete, address)
    small = metrics(address)["vllm_dare_pool_tokens"]
    build_pool(read_documents([DEMO / "documents.jsonl"]), demo_model, pool, overwrite=True)
    work_until(complete, address, "vllm_dare_pool_reloads_total", texts)
    assert metrics(address)["vllm_dare_pool_tokens"] > 10 * small
    assert accepted_share(complete, address) > before + 0.1
    assert complete() == texts


def test_what_cannot_be_used_is_refused_and_serving_goes_on(
    pool: Path, address: str, complete: Callable[[], list[str]]
) -> None:
    texts, reloads = complete(), metrics(address)["vllm_dare_pool_reloads_total"]
    (pool / "manifest.json").write_text("{")
    deadline = time.monotonic() + 60
    while metrics(address)["vllm_dare_errors_total"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert complete() == texts
    shutil.rmtree(pool)
    time.sleep(2)
    assert complete() == texts
    after = metrics(address)
    assert after["vllm_dare_pool_reloads_total"] == reloads
    assert after["vllm_dare_errors_total"] == 1
