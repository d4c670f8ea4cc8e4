import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from vllm_dare.drafting import drafter as module
from vllm_dare.drafting.drafter import Drafter
from vllm_dare.errors import PoolError
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.pool import RetrievalPool


@pytest.fixture
def open_pool(tmp_path: Path) -> Callable[..., RetrievalPool]:
    def make(groups: int = 6, **options: bool) -> RetrievalPool:
        vocabulary = {str(i): i for i in range(50)}
        Tokenizer(models.WordLevel(vocabulary, unk_token="0")).save(str(tmp_path / "tokenizer.json"))
        documents = [
            Document(
                id=str(i), token_ids=np.array([1, 2, 3 + i % groups, 9] * 3, np.int32), group=f"g{i % groups}"
            )
            for i in range(4 * groups)
        ]
        build_pool(documents, str(tmp_path), tmp_path / "pool", **options)  # type: ignore[arg-type]
        return RetrievalPool.open(tmp_path / "pool")

    return make


def draft(drafter: Drafter, text: list[int], group: str | None) -> list[int]:
    one = np.ones(1, dtype=np.int64)
    tokens = np.array([text], dtype=np.int32)
    drafts = drafter.draft(tokens, drafter.batch([0], [drafter.sources(group)]), one * len(text), one)
    return drafts.tokens[0, : drafts.lengths[0]].tolist()


def test_a_group_drafts_its_own_text(open_pool: Callable[..., RetrievalPool]) -> None:
    drafter = Drafter(open_pool(), 8, 50)
    for group in range(6):
        assert draft(drafter, [1, 2], f"g{group}") == [3 + group]


def test_a_larger_pool_finds_its_room_made(
    open_pool: Callable[..., RetrievalPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool()
    drafter = Drafter(None, 8, 50)
    before = drafter._cache
    drafter.make_room(pool)
    drafter.serve(pool)
    assert drafter._cache is before  # it is large enough
    monkeypatch.setitem(pool.__dict__, "num_tokens", 20_000_000)
    drafter.make_room(pool)
    room = drafter._spare_cache
    assert draft(drafter, [1, 2], "g1") == [4]  # the old one serves meanwhile
    assert room.size > before.size
    assert not room[1:].any()
    drafter.serve(pool)
    assert drafter._cache is room
    assert draft(drafter, [1, 2], "g1") == [4]
    assert room[1:].any()


def test_unknown_group_and_none_share_the_global_sources(open_pool: Callable[..., RetrievalPool]) -> None:
    drafter = Drafter(open_pool(), 8, 50)
    assert drafter.sources("nobody") is drafter.sources(None)
    assert len(drafter.sources(None).segments) == 1
    assert len(drafter.sources("g1").segments) == 2


def test_a_pool_without_a_global_segment(open_pool: Callable[..., RetrievalPool]) -> None:
    drafter = Drafter(open_pool(global_segment=False), 8, 50)
    assert draft(drafter, [1, 2], "g2") == [5]
    assert draft(drafter, [1, 2], "nobody") == []


def test_only_so_many_groups_are_kept_and_running_requests_keep_theirs(
    open_pool: Callable[..., RetrievalPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_GROUPS", 2)
    drafter = Drafter(open_pool(), 8, 50)
    held = drafter.sources("g0")
    for group in range(1, 6):
        drafter.sources(f"g{group}")
    assert drafter.sources("g0") is not held
    drafter.pool.close()  # type: ignore[union-attr]
    gc.collect()
    one = np.ones(1, dtype=np.int64)
    drafts = drafter.draft(np.array([[1, 2]], np.int32), drafter.batch([0], [held]), one * 2, one)
    assert drafts.tokens[0, 0] == 3


def test_a_segment_that_has_gone_is_an_error_of_that_group_alone(
    open_pool: Callable[..., RetrievalPool],
) -> None:
    pool = open_pool()
    (pool.directory / "segments" / f"{pool.manifest.groups['g3'][0]}.safetensors").unlink()
    drafter = Drafter(pool, 8, 50)
    with pytest.raises(PoolError):
        drafter.sources("g3")
    assert draft(drafter, [1, 2], "g4") == [7]


def test_texts_of_another_type_are_refused() -> None:
    one = np.ones(1, dtype=np.int64)
    drafter = Drafter(None, 4, 50)
    batch = drafter.batch([0], [drafter.sources(None)])
    with pytest.raises(TypeError, match="int32"):
        drafter.draft(np.zeros((1, 4), np.int64), batch, one, one)  # type: ignore[arg-type]
