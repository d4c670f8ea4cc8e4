"""Refreshing: what comes, what gives way, what goes; and that nothing is ever half done."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import LiveStore, prepare_live
from vllm_dare.pool.lock import changing
from vllm_dare.pool.manifest import read_manifest
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.refresh import refresh_pool
from vllm_dare.pool.rows import BadRows
from vllm_dare.pool.tokenizer import TokenizerInfo

MakePool = Callable[..., tuple[Path, BuildReport]]
Write = Callable[..., Path]

ROWS = [("u1", "a a", "users/1"), ("u2", "b b", "users/2"), ("u3", "c c", "users/1"), ("x", "war", None)]
A, B, C, WAR, SPACE = [1, 1], [2, 2], [3, 3], [8], [7]


def texts(directory: Path, group: str | None = None) -> list[list[int]]:
    """Everybody's documents, or a group's, after everything was checked."""
    with RetrievalPool.open(directory) as pool:
        pool.verify()
        segments = pool.global_segments() if group is None else pool.group_segments(group)
        return [document.tolist() for segment in segments for document in segment.documents()]


def keys(directory: Path) -> list[int]:
    with RetrievalPool.open(directory) as pool:
        return [int(key) for segment in pool.global_segments() for key in segment.document_keys]


def leftovers(directory: Path) -> set[str]:
    names = {path.name for path in directory.rglob("*") if path.is_file()}
    names -= {"manifest.json", "readers"}
    manifest = read_manifest(directory)
    return names - {f"{name}.safetensors" for name in manifest.segments} - {manifest.assignments}


def test_new_documents_are_the_newest_and_replace_those_of_the_same_id(
    make_pool: MakePool, write_jsonl: Write, tokenizer: str
) -> None:
    pool, _ = make_pool("pool", ROWS)
    new = write_jsonl(
        "new.jsonl",
        [{"id": "u1", "text": "space", "group": "users/2"}, {"id": "u4", "text": "b a", "group": "users/1"}],
    )
    report = refresh_pool(pool, [new], 100, tokenizer=tokenizer)
    assert texts(pool) == [B, C, WAR, SPACE, [2, 1]]
    assert texts(pool, "users/1") == [C, [2, 1]]
    assert texts(pool, "users/2") == [B, SPACE]
    with RetrievalPool.open(pool) as opened:
        assert opened.group_of("user", "u1") == "users/2"
        assert opened.group_of("user", "u3") == "users/1"
        assert opened.manifest.pivots is not None
    assert (report.num_tokens_before, report.num_tokens) == (7, 8)
    assert (report.num_new, report.num_replaced, report.num_dropped) == (2, 1, 0)
    assert not leftovers(pool)


def test_what_was_learned_moves_into_the_pool(
    make_pool: MakePool, write_jsonl: Write, tokenizer: str, info: TokenizerInfo
) -> None:
    pool, _ = make_pool("pool", [("u1", "a a", "users/1")])
    live = prepare_live(pool, info)
    store = LiveStore(live, info, has_global=True, max_tokens=10_000)

    def learn(tokens: list[int], user: str) -> None:
        key = entity_hash("user", user)
        store.freeze([LiveDocument(np.array(tokens, np.int32), "users/1", "strict", key)])

    learn(B, "u1")
    learn(C, "u2")
    day = write_jsonl("day1.jsonl", [{"id": "u2", "text": "space", "group": "users/1"}])
    refresh_pool(pool, [day, live], 100, tokenizer=tokenizer)
    assert texts(pool) == texts(pool, "users/1") == [B, SPACE]  # files count as newer than directories
    assert texts(live) == texts(live, "users/1") == []
    learn(WAR, "u3")
    refresh_pool(pool, [live], 100)
    refresh_pool(pool, [live], 100)
    assert texts(pool) == [B, SPACE, WAR]
    assert texts(live) == []


def test_an_id_that_gets_a_group_replaces_its_text_without_one(
    make_pool: MakePool, write_jsonl: Write, tokenizer: str
) -> None:
    pool, _ = make_pool("pool", [("1", "a a", None), ("2", "b b", None)])
    new = write_jsonl("new.jsonl", [{"id": "1", "text": "c c", "group": "users/1"}])
    report = refresh_pool(pool, [new], 100, tokenizer=tokenizer)
    assert texts(pool) == [B, C]
    assert report.num_replaced == 1


def test_the_oldest_go_everywhere_while_there_is_too_much(
    make_pool: MakePool, write_jsonl: Write, tokenizer: str
) -> None:
    pool, _ = make_pool("pool", ROWS)
    new = write_jsonl("new.jsonl", [{"id": "u4", "text": "space", "group": "users/2"}])
    report = refresh_pool(pool, [new], 5, tokenizer=tokenizer)
    assert texts(pool) == [C, WAR, SPACE]
    assert texts(pool, "users/1") == [C]
    assert texts(pool, "users/2") == [SPACE]
    assert (report.num_tokens, report.num_dropped) == (4, 2)


def test_of_equal_documents_as_many_go_from_a_group_as_go_in_all(
    make_pool: MakePool, write_jsonl: Write, tokenizer: str
) -> None:
    pool, _ = make_pool("pool", [(i, "a a", "g") for i in "1234"])
    refresh_pool(
        pool, [write_jsonl("new.jsonl", [{"id": "5", "text": "b b", "group": "g"}])], 6, tokenizer=tokenizer
    )
    assert texts(pool) == texts(pool, "g") == [A, A, B]


def test_without_a_global_segment_each_group_keeps_its_share(
    make_pool: MakePool, write_jsonl: Write, tokenizer: str
) -> None:
    rows = [(f"a{i}", "a a", "users/1") for i in range(4)] + [(f"b{i}", "b b", "users/2") for i in range(8)]
    pool, _ = make_pool("pool", rows, global_segment=False)
    new = write_jsonl("new.jsonl", [{"id": "a9", "text": "c c", "group": "users/1"}])
    refresh_pool(pool, [new], 13, tokenizer=tokenizer)
    assert texts(pool) == []
    assert texts(pool, "users/1") == [A, C]
    assert texts(pool, "users/2") == [B] * 4
    with pytest.raises(PoolError, match=r"new.jsonl:1 has no group, so that without a global segment"):
        refresh_pool(pool, [write_jsonl("new.jsonl", [{"id": 1, "text": "a"}])], 13, tokenizer=tokenizer)


def test_what_engines_learned_comes_in_from_the_live_directory(make_pool: MakePool, tokenizer: str) -> None:
    pool, built = make_pool("pool", ROWS)
    info: TokenizerInfo = built.manifest.tokenizer
    store = LiveStore(prepare_live(pool, info), info, has_global=True, max_tokens=1000)
    long = np.array([4, 5, 6, 7] * 20, np.int32)
    store.freeze([LiveDocument(np.array([2, 3], np.int32), "users/1", "strict", entity_hash("user", "u1"))])
    store.freeze([LiveDocument(long, "users/2", "strict")])
    for _ in range(2):  # the second time nothing is there any more
        refresh_pool(pool, [pool / "live"], 100)
        assert texts(pool) == [B, C, WAR, [2, 3], long.tolist()]
        assert texts(pool, "users/1") == [C, [2, 3]]
        assert texts(pool, "users/2") == [B, long.tolist()]
        assert keys(pool)[3:] == [entity_hash("user", "u1"), 0]
    assert texts(pool / "live") == []


def test_what_was_learned_of_a_user_replaces_the_documents_that_name_the_user(
    make_pool: MakePool, write_jsonl: Write, tokenizer: str
) -> None:
    pool, built = make_pool("pool", [("x", "war", None)])
    new = write_jsonl("new.jsonl", [{"id": "u19", "user": "19", "text": "a b", "group": "users/1"}])
    refresh_pool(pool, [new], 100, tokenizer=tokenizer)
    info = built.manifest.tokenizer
    store = LiveStore(prepare_live(pool, info), info, has_global=True, max_tokens=1000)
    store.freeze([LiveDocument(np.array([5, 6], np.int32), "users/1", "strict", entity_hash("user", "19"))])
    assert refresh_pool(pool, [pool / "live"], 100).num_replaced == 1
    assert texts(pool) == [[8], [5, 6]]
    assert texts(pool, "users/1") == [[5, 6]]


def test_pruning_takes_the_place_of_age(make_pool: MakePool, write_jsonl: Write, tokenizer: str) -> None:
    rows = [(f"u{i}", "a b c likes films about space .", None) for i in range(6)]
    pool, built = make_pool("pool", rows)
    new = write_jsonl("new.jsonl", [{"id": f"v{i}", "text": "war " * (i + 9)} for i in range(2)])
    report = refresh_pool(pool, [new], 16, tokenizer=tokenizer, prune=True)
    assert report.num_tokens <= 16
    assert report.num_dropped == 0
    assert any(text[:2] == [1, 2] for text in texts(pool))
    assert read_manifest(pool).blend == built.manifest.blend


def test_token_ids_need_no_tokenizer_and_text_asks_for_one(make_pool: MakePool, write_jsonl: Write) -> None:
    pool, _ = make_pool("pool", ROWS)
    refresh_pool(pool, [write_jsonl("new.jsonl", [{"id": 1, "token_ids": [7]}])], 100)
    assert texts(pool)[-1] == SPACE
    with pytest.raises(PoolError, match=r"new.jsonl:1 has no token_ids; name the tokenizer .* --tokenizer"):
        refresh_pool(pool, [write_jsonl("new.jsonl", [{"id": 1, "text": "a"}])], 100)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"id": 1, "token_ids": [10]}], r"new.jsonl:1 has the token id 10, beyond the vocabulary"),
        ([{"id": 1}], r"new.jsonl:1 has neither text nor token_ids"),
    ],
)
def test_documents_that_cannot_be_used_change_nothing(
    make_pool: MakePool, write_jsonl: Write, rows: list[dict[str, Any]], match: str
) -> None:
    pool, _ = make_pool("pool", ROWS)
    before = (pool / "manifest.json").read_bytes()
    new = write_jsonl("new.jsonl", rows)
    with pytest.raises(PoolError, match=match):
        refresh_pool(pool, [new], 100)
    assert (pool / "manifest.json").read_bytes() == before
    bad_rows = BadRows(skip=True)
    refresh_pool(pool, [new], 100, bad_rows=bad_rows)
    assert bad_rows.num_skipped == 1
    assert texts(pool) == [A, B, C, WAR]


def test_other_tokenizers_are_refused(make_pool: MakePool, write_jsonl: Write, other_tokenizer: str) -> None:
    pool, _ = make_pool("pool", ROWS)
    other, _ = make_pool("other", ROWS, tokenizer=other_tokenizer)
    with pytest.raises(PoolError, match=r"was built with the tokenizer words .* uses .*others"):
        refresh_pool(pool, [write_jsonl("new.jsonl", [])], 100, tokenizer=other_tokenizer)
    with pytest.raises(PoolError, match=r"Cannot merge .*others"):
        refresh_pool(pool, [other], 100)


def test_a_budget_that_leaves_nothing_is_refused(make_pool: MakePool, write_jsonl: Write) -> None:
    pool, _ = make_pool("pool", ROWS[:1])
    with pytest.raises(PoolError, match=r"A budget of 1 tokens leaves no document in .*; raise it\.$"):
        refresh_pool(pool, [write_jsonl("new.jsonl", [])], 1)
    assert texts(pool) == [A]


def test_a_reader_keeps_the_old_pool(make_pool: MakePool, write_jsonl: Write) -> None:
    pool, _ = make_pool("pool", ROWS)
    new = write_jsonl("new.jsonl", [{"id": 1, "token_ids": [7]}])
    with RetrievalPool.open(pool) as reader:
        refresh_pool(pool, [new], 2)
        assert [d.tolist() for s in reader.group_segments("users/1") for d in s.documents()] == [A, C]
    assert texts(pool) == [WAR, SPACE]
    assert leftovers(pool)
    refresh_pool(pool, [new], 2)
    assert not leftovers(pool)


def test_a_second_change_at_the_same_time_is_refused(make_pool: MakePool, write_jsonl: Write) -> None:
    pool, _ = make_pool("pool", ROWS)
    new = write_jsonl("new.jsonl", [{"id": 1, "token_ids": [7]}])
    with changing(pool):
        with pytest.raises(PoolError, match=r"Another process is changing the pool .*; try again"):
            refresh_pool(pool, [new], 100)
        with pytest.raises(PoolError, match="Another process is changing the pool"):
            make_pool("pool", ROWS, overwrite=True)
    assert texts(pool) == [A, B, C, WAR]
    refresh_pool(pool, [new], 100)
    assert texts(pool)[-1] == SPACE


KILLED_REFRESH = """
import json, sys
from pathlib import Path
from vllm_dare.pool.refresh import refresh_pool
pool, number = Path(sys.argv[1]), int(sys.argv[2])
while True:
    new = pool.parent / f"{number}.jsonl"
    digits = [number // 100, number // 10 % 10, number % 10]
    new.write_text(json.dumps({"id": number, "token_ids": digits, "group": "g"}))
    refresh_pool(pool, [new], 12)
    print(number, flush=True)
    number += 1
"""


def test_killed_at_any_moment_it_leaves_the_old_pool_or_the_new_one(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", [("111", "a a a", "g")])
    chance, number = random.Random(0), 112
    for _ in range(5):
        command = [sys.executable, "-c", KILLED_REFRESH, str(pool), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline())]
            time.sleep(chance.random() * 0.2)
            os.kill(process.pid, signal.SIGKILL)
            said += [int(line) for line in process.stdout.read().split()]
        found = [100 * first + 10 * second + third for first, second, third in texts(pool)]
        assert found[-1] in (said[-1], said[-1] + 1)  # written, but killed before it said so
        assert found == list(range(max(found[-1] - 3, 111), found[-1] + 1))
        assert texts(pool, "g") == texts(pool)
        number = found[-1] + 1
    new = pool.parent / "last.jsonl"
    new.write_text('{"id": "last", "token_ids": [9, 9, 9], "group": "g"}')
    refresh_pool(pool, [new], 12)
    assert not leftovers(pool)
