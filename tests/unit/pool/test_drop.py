"""Dropping: one user's text is gone from every file, and nothing else is."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.deletion_proof import RUN_TOKENS, DeletionProof, prove_deletion
from vllm_dare.pool.drop import drop_documents, drop_group
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import LiveStore, prepare_live
from vllm_dare.pool.lock import changing
from vllm_dare.pool.manifest import read_manifest
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import Segment, write_segment
from vllm_dare.pool.tokenizer import TokenizerInfo

MakePool = Callable[..., tuple[Path, BuildReport]]

ROWS = [
    ("u1", "a b c war", "users/1"),
    ("u2", "b b", "users/2"),
    ("u3", "c c", "users/1"),
    ("u1", "space films", "items/1"),
    ("x", "war war", None),
]
SECRET = np.array([1, 2, 3, 8], np.int32)


def texts(directory: Path, group: str | None = None) -> list[list[int]]:
    with RetrievalPool.open(directory) as pool:
        pool.verify()
        segments = pool.global_segments() if group is None else pool.group_segments(group)
        return [document.tolist() for segment in segments for document in segment.documents()]


def holds(directory: Path, tokens: np.ndarray) -> bool:
    return any(tokens.tobytes() in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


def test_a_users_text_is_gone_and_nothing_else_is(make_pool: MakePool) -> None:
    pool, built = make_pool("pool", ROWS, provenance="strict", model="m")
    before = names(pool)
    assert holds(pool, SECRET)
    report = drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")
    assert (report.num_documents, report.num_segments, report.is_read) == (2, 2, False)
    assert not holds(pool, SECRET)
    assert texts(pool) == [[2, 2], [3, 3], [7, 5], [8, 8]]
    assert texts(pool, "users/1") == [[3, 3]]
    manifest = read_manifest(pool)
    for field in ("assignments", "blend", "pivots", "tokenizer", "created_at"):
        assert getattr(manifest, field) == getattr(built.manifest, field)
    for group in ("users/2", "items/1"):
        assert manifest.groups[group] == built.manifest.groups[group]
    assert len(names(pool) - before) == 2
    with RetrievalPool.open(pool) as opened:
        header = opened.global_segments()[0].header
        assert (header.provenance, header.model) == ("strict", "m")
        assert entity_hash("user", "u1") not in opened.global_segments()[0].document_keys.tolist()


def test_a_group_without_text_is_forgotten_and_an_empty_global_segment_stays(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", [("u1", "a b c war", "users/1")])
    drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")
    manifest = read_manifest(pool)
    assert manifest.groups == {}
    assert len(manifest.global_segments) == 1
    assert texts(pool) == []
    assert not holds(pool, SECRET)


def test_of_two_global_segments_that_hold_one_users_text_both_are_changed(make_pool: MakePool) -> None:
    rows = [(str(i), "a b c war", None) for i in range(3)]
    pool, _ = make_pool("pool", rows, max_segment_tokens=4)
    drop_documents(pool, {entity_hash("document", i) for i in "02"}, "two ids")
    assert texts(pool) == [[1, 2, 3, 8]]


def test_what_was_learned_of_a_user_goes_too(make_pool: MakePool) -> None:
    pool, built = make_pool("pool", ROWS[1:])
    info = built.manifest.tokenizer
    store = LiveStore(prepare_live(pool, info), info, has_global=True, max_tokens=1000)
    store.freeze(
        [
            LiveDocument(SECRET, "users/1", "strict", entity_hash("user", "u1")),
            LiveDocument(np.array([5, 5], np.int32), "users/1", "strict"),
        ]
    )
    drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")
    assert not holds(pool, SECRET)
    assert texts(pool / "live") == texts(pool / "live", "users/1") == [[5, 5]]
    store.freeze([LiveDocument(np.array([6, 6], np.int32), "users/1", "strict")])
    assert texts(pool / "live") == [[5, 5], [6, 6]]


@pytest.mark.parametrize("whose", ["user 'u9'", "id 'x'"])
def test_what_is_not_there_is_refused(make_pool: MakePool, whose: str) -> None:
    pool, _ = make_pool("pool", ROWS)
    before = names(pool)
    with pytest.raises(PoolError, match=rf"has no document of {whose}: it is gone, or .*; check the id"):
        drop_documents(pool, {entity_hash("user", "u9")}, whose)
    assert names(pool) == before


def test_old_files_stay_for_a_reader_and_go_with_the_next_call(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", ROWS)
    with RetrievalPool.open(pool) as reader:
        assert drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'").is_read
        (segment,) = reader.group_segments("users/1")
        assert next(segment.documents()).tolist() == SECRET.tolist()
        with pytest.raises(PoolError, match="still reads files of an earlier version"):
            drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")
        assert holds(pool, SECRET)
        with RetrievalPool.open(pool):  # who reads the present version is in nobody's way
            reader.close()
            again = drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")
            assert (again.num_documents, again.is_read) == (0, False)
            assert again.num_files > 0
    assert not holds(pool, SECRET)
    with pytest.raises(PoolError, match="has no document"):
        drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")


def test_a_damaged_segment_is_not_given_a_new_checksum(make_pool: MakePool) -> None:
    pool, built = make_pool("pool", ROWS)
    (name,) = built.manifest.groups["users/1"]
    path = pool / "segments" / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(PoolError, match="its checksum is not its name"):
        drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")


def test_what_was_learned_is_changed_through_its_pool(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", ROWS)
    make_pool("pool/live", ROWS)
    before = texts(pool / "live")
    with pytest.raises(PoolError, match=r"live is what engines have learned into the pool .*pool; give that"):
        drop_documents(pool / "live", {entity_hash("user", "u1")}, "user 'u1'")
    assert texts(pool / "live") == before
    (pool / "manifest.json").unlink()  # a pool of that name alone is one like others
    drop_documents(pool / "live", {entity_hash("user", "u1")}, "user 'u1'")
    assert texts(pool / "live") != before


def test_a_pool_that_is_being_changed_is_left_alone(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", ROWS)
    with changing(pool), pytest.raises(PoolError, match="Another process is changing the pool"):
        drop_documents(pool, {entity_hash("user", "u1")}, "user 'u1'")


def test_a_change_by_another_one_is_waited_for(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", ROWS)
    with ThreadPoolExecutor(1) as executor:
        with changing(pool):
            waiting = executor.submit(
                drop_documents, pool, {entity_hash("user", "u1")}, "u1", wait_seconds=60
            )
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            assert holds(pool, SECRET)
        waiting.result()
    assert waiting.result().num_documents > 0
    assert not holds(pool, SECRET)


def test_a_groups_text_is_gone_also_from_the_global_segment_and_from_what_was_learned(
    make_pool: MakePool,
) -> None:
    rows = [*ROWS, ("u4", "a b c war", None), ("u5", "c c", "users/2")]
    pool, built = make_pool("pool", rows)
    info = built.manifest.tokenizer
    store = LiveStore(prepare_live(pool, info), info, has_global=True, max_tokens=1000)
    store.freeze(
        [
            LiveDocument(SECRET, "users/1", "strict"),
            LiveDocument(np.array([5, 5], np.int32), "users/2", "strict"),
        ]
    )
    report = drop_group(pool, "users/1")
    assert (report.num_documents, report.is_read, report.is_learned) == (6, False, False)
    # Others' equal texts stay.
    assert texts(pool) == [[2, 2], [7, 5], [8, 8], [1, 2, 3, 8], [3, 3]]
    assert texts(pool, "users/2") == [[2, 2], [3, 3]]
    assert texts(pool / "live") == texts(pool / "live", "users/2") == [[5, 5]]
    manifest = read_manifest(pool)
    assert sorted(manifest.groups) == ["items/1", "users/2"]
    for field in ("assignments", "blend", "pivots", "tokenizer", "created_at"):
        assert getattr(manifest, field) == getattr(built.manifest, field)
    with pytest.raises(PoolError, match=r"has no document of the group 'users/1': .*; check its name"):
        drop_group(pool, "users/1")


def test_a_group_with_the_same_text_as_another_goes_alone(make_pool: MakePool) -> None:
    rows = [(str(i), "a b c war", f"users/{i}") for i in range(2)]
    pool, built = make_pool("pool", rows)
    drop_group(pool, "users/0")
    assert texts(pool) == texts(pool, "users/1") == [SECRET.tolist()]
    assert texts(pool, "users/0") == []
    assert sorted(read_manifest(pool).groups) == ["users/1"]
    assert built.num_documents == 2


def runs(documents: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(one[i : i + RUN_TOKENS]) for one in documents for i in range(len(one) - RUN_TOKENS + 1)}


TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=6)


@settings(max_examples=60)
@given(TEXTS, TEXTS)
def test_the_proof_counts_as_one_would_by_hand(
    tmp_path_factory: pytest.TempPathFactory, removed: list[list[int]], kept: list[list[int]]
) -> None:
    info = TokenizerInfo(name="numbers", fingerprint="0123456789abcdef", vocab_size=2)
    folder = tmp_path_factory.mktemp("segments")

    def segment(documents: list[list[int]]) -> Segment:
        return write_segment(folder, [np.array(one, np.int32) for one in documents], tokenizer=info)

    documents = [np.array(one, np.int32) for one in removed]
    unique = runs(removed) - runs(kept)
    proof = prove_deletion(documents, [segment([*kept, *removed])], [segment(kept)], [])
    assert proof == DeletionProof(len(runs(removed)), len(unique), 0)
    assert prove_deletion(documents, [segment(removed)], [], [segment(kept)]) == proof
    # Had one been forgotten, it would be seen.
    left = runs(removed[:1]) & unique
    proof = prove_deletion(documents, [segment([*kept, *removed])], [segment([*kept, removed[0]])], [])
    assert proof.num_left == len(left)


def test_a_pool_of_more_groups_than_can_be_mapped_loses_a_user_too(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = make_pool("pool", [(str(i), "a b c war", f"users/{i}") for i in range(40)])
    mapped: WeakSet[Segment] = WeakSet()
    most, open_segment = 0, Segment.open

    def counted(path: Path) -> Segment:
        nonlocal most
        segment = open_segment(path)
        mapped.add(segment)
        most = max(most, len(mapped))
        return segment

    monkeypatch.setattr(Segment, "open", counted)
    assert drop_documents(pool, {entity_hash("user", 7)}, "user '7'").num_documents == 2
    assert drop_group(pool, "users/8").num_documents == 2
    assert most <= 6
