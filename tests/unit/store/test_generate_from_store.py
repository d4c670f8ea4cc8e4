"""What a batch run looks at before and beside its engine, where its pool is in a store."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vllm_dare.errors import PoolError, StoreError
from vllm_dare.generation.engine import check_pool, open_router
from vllm_dare.generation.job import Outcome
from vllm_dare.generation.learned import Learned, learned_since, learned_so_far
from vllm_dare.generation.settings import EngineSettings
from vllm_dare.generation.summary import outcome_table
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import LiveStore, prepare_live
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.routing.query import Query
from vllm_dare.store.cache import Place, pool_directory
from vllm_dare.store.latest import read_latest
from vllm_dare.store.outbox import Outbox, Unsent
from vllm_dare.store.remote import Store
from vllm_dare.store.transfer import push_pool

MakePool = Callable[..., Path]


@pytest.fixture
def settings(url: str, make_pool: MakePool, tokenizer: str) -> EngineSettings:
    """Of a run that learns into a store's pool, which is here."""
    push_pool(make_pool("pool", [("u1", "a likes films", "users/1")]), url)
    check_pool(url, tokenizer)
    return EngineSettings(tokenizer, pool=url, learn=True)


def test_the_pool_is_fetched_and_read(url: str, settings: EngineSettings, info: TokenizerInfo) -> None:
    router = open_router(settings)
    assert router is not None
    assert router.route(Query(user="u1")).group == "users/1"
    prepare_live(pool_directory(url), info)
    assert learned_so_far(settings) == Learned(0, 0)


def test_text_that_could_not_be_sent_is_told(url: str, settings: EngineSettings, info: TokenizerInfo) -> None:
    outbox = Outbox(Place(url))
    live = LiveStore(
        prepare_live(pool_directory(url), info),
        info,
        has_global=True,
        max_tokens=1000,
        pass_on=lambda documents: outbox.add(documents, info),
    )
    before = learned_so_far(settings)
    live.freeze([LiveDocument(np.arange(9, dtype=np.int32), None, "strict", 1)])
    learned = learned_since(before, settings, {})
    assert learned == Learned(1, 9, unsent=Unsent(1, 9, str(outbox.directory)))
    outcome = Outcome("complete", 1, 0, 0, learned=learned)
    json.dumps(outcome.as_dict())
    console = Console(file=io.StringIO(), width=400)
    console.print(outcome_table(outcome))
    assert f"1 documents, 9 tokens wait in {outbox.directory}; the next run" in console.file.getvalue()
    outbox.tend(Store(url), read_latest(Store(url)))
    assert learned_since(before, settings, {}) == Learned(1, 9)


def test_a_missing_pool_is_an_error_unless_it_is_to_be_learned(url: str, tokenizer: str) -> None:
    with pytest.raises(StoreError, match="There is no pool at"):
        check_pool(url, tokenizer)
    check_pool(url, tokenizer, learn=True)


def test_a_pool_of_another_tokenizer_is_found_early(
    url: str, make_pool: MakePool, tmp_path: Path, tokenizer: str
) -> None:
    push_pool(make_pool("pool", [("u1", "a likes films", "users/1")]), url)
    other = tmp_path / "other"
    other.mkdir()
    text = (Path(tokenizer) / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"films"', '"movies"'))
    with pytest.raises(PoolError, match="was built with the tokenizer"):
        check_pool(url, str(other))
