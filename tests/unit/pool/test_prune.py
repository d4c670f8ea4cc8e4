"""Pruned pools: what stays of a pool but its text, and how much of that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import document_key, kinds_of_group
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.prune import Budget, prune_pool

MakePool = Callable[..., tuple[Path, BuildReport]]

ROWS = [
    (f"u{i}", f"a b c likes films about {'space' if i % 2 else 'war'} . a a b b", f"users/{i % 2}")
    for i in range(12)
] + [("i1", "war films . c c", "items/1"), ("x", "likes about films space", None)]


def num_tokens(pool: RetrievalPool, group: str | None = None) -> int:
    segments = pool.global_segments() if group is None else pool.group_segments(group)
    return sum(segment.header.num_tokens for segment in segments)


def test_keeping_everything_changes_no_segment(make_pool: MakePool, tmp_path: Path) -> None:
    source, built = make_pool("pool", ROWS)
    report = prune_pool(source, tmp_path / "small", Budget(share=1.0))
    assert report.num_tokens == report.num_tokens_before
    for field in ("groups", "global_segments", "segments", "assignments", "blend", "pivots", "tokenizer"):
        assert getattr(report.manifest, field) == getattr(built.manifest, field)


def test_the_budget_bounds_the_global_segment_and_all_groups(make_pool: MakePool, tmp_path: Path) -> None:
    source, built = make_pool("pool", ROWS, provenance="strict", model="m")
    report = prune_pool(source, tmp_path / "small", Budget(tokens=60))
    assert report.num_tokens <= 60 < report.num_tokens_before
    with RetrievalPool.open(tmp_path / "small") as pool, RetrievalPool.open(source) as before:
        pool.verify()
        assert num_tokens(pool) == report.num_tokens > 50
        groups = {group: num_tokens(pool, group) for group in pool.groups}
        assert 30 < sum(groups.values()) <= 60
        for group, tokens in groups.items():
            assert tokens <= 60 * num_tokens(before, group) / 137 + 1
        assert pool.group_of("user", "u3") == "users/1"
        header = pool.global_segments()[0].header
        assert (header.provenance, header.model) == ("strict", "m")
        assert pool.manifest.blend == built.manifest.blend
        assert pool.manifest.pivots == built.manifest.pivots


def test_a_passage_has_the_key_of_its_document(make_pool: MakePool, tmp_path: Path) -> None:
    source, _ = make_pool("pool", ROWS)
    prune_pool(source, tmp_path / "small", Budget(share=0.3))
    texts: dict[int, list[list[int]]] = {}
    with RetrievalPool.open(source) as pool:
        for segment in pool.global_segments():
            for tokens, key in segment.keyed_documents():
                texts.setdefault(key, []).append(tokens.tolist())
    with RetrievalPool.open(tmp_path / "small") as pool:
        passages = [one for segment in pool.global_segments() for one in segment.keyed_documents()]
    assert passages
    for tokens, key in passages:
        (whole,) = texts[key]
        assert any(whole[i : i + len(tokens)] == tokens.tolist() for i in range(len(whole)))
    assert {document_key(kinds_of_group(group), i) for i, _, group in ROWS} == texts.keys()


def test_pools_without_groups_or_without_a_global_segment(make_pool: MakePool, tmp_path: Path) -> None:
    ungrouped, _ = make_pool("ungrouped", [(i, text, None) for i, text, _ in ROWS])
    prune_pool(ungrouped, tmp_path / "one", Budget(share=0.5))
    grouped, _ = make_pool("grouped", ROWS[:-1], global_segment=False)
    report = prune_pool(grouped, tmp_path / "two", Budget(share=0.5))
    with RetrievalPool.open(tmp_path / "one") as one, RetrievalPool.open(tmp_path / "two") as two:
        assert not one.groups
        assert 70 < num_tokens(one) <= 76
        assert two.global_segments() == ()
        assert sum(num_tokens(two, group) for group in two.groups) == report.num_tokens <= 74


def test_a_budget_that_leaves_nothing_is_refused(make_pool: MakePool, tmp_path: Path) -> None:
    source, _ = make_pool("pool", ROWS)
    with pytest.raises(PoolError, match=r"the budget leaves none; give a larger one\.$"):
        prune_pool(source, tmp_path / "small", Budget(share=0.001))
    assert not (tmp_path / "small").exists()


def test_an_output_that_exists_and_a_damaged_pool_are_refused(make_pool: MakePool, tmp_path: Path) -> None:
    source, _ = make_pool("pool", ROWS)
    with pytest.raises(PoolError, match="exists already"):
        prune_pool(source, source, Budget(share=0.5))
    path = next((source / "segments").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(PoolError, match="its checksum is not its name"):
        prune_pool(source, tmp_path / "small", Budget(share=0.5))
