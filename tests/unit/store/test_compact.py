import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.store_server import StoreServer
from vllm_dare.cli.app import app
from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.store import collect as collect_module
from vllm_dare.store.cache import Place
from vllm_dare.store.compact import compact
from vllm_dare.store.latest import read_latest
from vllm_dare.store.lease import Lease
from vllm_dare.store.outbox import Outbox
from vllm_dare.store.remote import Store
from vllm_dare.store.transfer import pull_pool, push_pool

MakePool = Callable[..., Path]
OLD = [("u1", "w1 w1", "users/1"), ("u2", "w2 w2", "users/2"), ("u3", "w3", None)]


class Node:
    """A node that learns and sends."""

    def __init__(self, url: str, cache: Path, info: TokenizerInfo) -> None:
        self.store, self.info, self.cache = Store(url), info, cache
        self.outbox = self._with_cache(lambda: Outbox(Place(url)))

    def learn(self, *documents: LiveDocument) -> None:
        self.outbox.add(documents, self.info)
        self.outbox.tend(self.store, read_latest(self.store))

    def _with_cache(self, make: Callable[[], Outbox]) -> Outbox:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("VLLM_DARE_CACHE", str(self.cache))
            return make()


@pytest.fixture
def node(url: str, tmp_path: Path, info: TokenizerInfo) -> Node:
    return Node(url, tmp_path / "node", info)


def text(key: int, *ids: int, group: str | None = "users/1") -> LiveDocument:
    return LiveDocument(np.array(ids, np.int32), group, "strict", key)


def held(url: str, tmp_path: Path, group: str | None = None) -> list[list[int]]:
    """Everybody's documents in a store, or a group's, after everything was checked."""
    copy = tmp_path / f"copy-{time.time()}"
    pull_pool(url, copy)
    with RetrievalPool.open(copy) as pool:
        pool.verify()
        segments = pool.global_segments() if group is None else pool.group_segments(group)
        return [document.tolist() for segment in segments for document in segment.documents()]


@pytest.fixture
def pushed(url: str, make_pool: MakePool) -> str:
    push_pool(make_pool("old", OLD), url)
    return url


def test_learned_text_becomes_part_of_the_pool(pushed: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(1, 5, 6), text(2, 7, group="users/9"))
    node.learn(text(0, 8, group=None))
    report = compact(pushed)
    assert (report.num_batches, report.num_new, report.num_replaced, report.num_foreign) == (2, 3, 0, 0)
    assert held(pushed, tmp_path) == [[2, 2], [3, 3], [4], [5, 6], [7], [8]]
    assert held(pushed, tmp_path, "users/1") == [[2, 2], [5, 6]]
    assert held(pushed, tmp_path, "users/9") == [[7]]
    assert node.store.files("live") == []
    assert read_latest(node.store).absorbed == {node.outbox.name: 2}
    assert compact(pushed).num_tokens is None  # nothing to do


def test_a_batch_that_is_sent_again_is_not_doubled(pushed: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(0, 5))
    (file,) = node.store.files("live")
    content = node.store.read(file.name)
    assert content is not None
    compact(pushed)
    node.store.write(file.name, content)  # by a sender that was killed before it noted that it had sent it
    assert compact(pushed).num_batches == 0
    assert node.store.files("live") == []
    node.learn(text(0, 5))  # the same text once more is another document
    compact(pushed)
    assert held(pushed, tmp_path).count([5]) == 2


def test_the_newest_text_of_an_id_stays(pushed: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(9, 5), text(9, 6))
    node.learn(text(9, 7))
    node.learn(text(8, 8))
    assert compact(pushed).num_replaced == 2
    node.learn(text(8, 9))
    assert compact(pushed).num_replaced == 1
    assert held(pushed, tmp_path) == [[2, 2], [3, 3], [4], [7], [9]]


def test_a_budget_lets_the_oldest_go(pushed: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(9, 5, 6))
    assert compact(pushed, 4).num_tokens == 3
    assert held(pushed, tmp_path) == [[4], [5, 6]]
    node.learn(text(8, 7, 8, 9))
    with pytest.raises(PoolError, match="A budget of 2 tokens leaves no document"):
        compact(pushed, 2)
    assert held(pushed, tmp_path) == [[4], [5, 6]]


def test_a_store_without_a_pool_gets_one(url: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(9, 5, 6))
    compact(url)
    assert held(url, tmp_path) == held(url, tmp_path, "users/1") == [[5, 6]]
    node.learn(text(8, 7))
    compact(url)
    assert held(url, tmp_path) == [[5, 6], [7]]


def test_groups_that_are_kept_apart_stay_so(
    url: str, node: Node, make_pool: MakePool, tmp_path: Path
) -> None:
    push_pool(make_pool("old", OLD[:2], global_segment=False), url)
    node.learn(text(9, 5), text(0, 6, group=None))
    compact(url)
    assert held(url, tmp_path) == []
    assert held(url, tmp_path, "users/1") == [[2, 2], [5]]


def test_text_of_another_tokenizer_is_left_out(pushed: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(9, 5))
    node.info = node.info.model_copy(update={"fingerprint": "0" * 16})
    node.learn(text(8, 6))
    report = compact(pushed)
    assert (report.num_new, report.num_foreign) == (1, 1)
    assert held(pushed, tmp_path) == [[2, 2], [3, 3], [4], [5]]
    assert node.store.files("live") == []


def test_two_nodes(pushed: str, tmp_path: Path, info: TokenizerInfo) -> None:
    nodes = [Node(pushed, tmp_path / name, info) for name in "ab"]
    for number, node in enumerate(nodes * 2):
        node.learn(text(number + 10, 10 + number))
    compact(pushed)
    assert held(pushed, tmp_path)[3:] == [[10], [11], [12], [13]]
    assert read_latest(Store(pushed)).absorbed == {node.outbox.name: 2 for node in nodes}


def test_a_push_keeps_what_has_not_been_merged(
    pushed: str, node: Node, make_pool: MakePool, tmp_path: Path
) -> None:
    node.learn(text(9, 5))
    compact(pushed)
    node.learn(text(8, 6))
    push_pool(make_pool("new", OLD[:1]), pushed, overwrite=True)
    compact(pushed)
    assert held(pushed, tmp_path) == [[2, 2], [6]]


def test_a_compactor_that_lost_its_lease_changes_nothing(
    pushed: str, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.learn(text(9, 5))
    publish, others = Lease.publish, iter([True])

    def late(self: Lease, manifest: str, absorbed: dict[str, int]) -> None:
        if next(others, False):
            self._is_held = False  # it is not renewed any more, and its time is over …
            self._closing.set()
            latest = self.latest.model_copy(update={"lease": None})
            self._tag = self._swap.replace("latest", latest.encode(), self._tag)
            stale = self._tag
            compact(pushed)  # … so that another one does the work
            self._tag = stale
        publish(self, manifest, absorbed)

    monkeypatch.setattr(Lease, "publish", late)
    with pytest.raises(StoreError, match="Another process has taken over"):
        compact(pushed)
    assert held(pushed, tmp_path) == [[2, 2], [3, 3], [4], [5]]
    assert compact(pushed).num_batches == 0


def test_old_files_go_after_a_day(
    pushed: str, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name for file in node.store.files()}
    node.store.write("README.md", b"mine")
    node.store.write("live/README.md", b"mine")
    node.learn(text(9, 5))
    compact(pushed)
    assert before < {file.name for file in node.store.files()}
    day = time.time() + 25 * 3600
    with monkeypatch.context() as patched:
        patched.setattr(collect_module.time, "time", lambda: day)
        patched.setattr(Lease, "_run", lambda self: self._closing.wait())
        assert compact(pushed).num_removed == 3  # the global segment, that of users/1, the manifest
    assert held(pushed, tmp_path) == [[2, 2], [3, 3], [4], [5]]
    assert {"README.md", "live/README.md"} < {file.name for file in node.store.files()}


def test_only_what_changed_is_moved(
    server: StoreServer, s3_url: str, make_pool: MakePool, tmp_path: Path, info: TokenizerInfo
) -> None:
    push_pool(make_pool("old", OLD), s3_url)
    node = Node(s3_url, tmp_path / "node", info)
    node.learn(text(9, 5))
    compact(s3_url)
    node.learn(text(8, 6))
    server.requests.clear()
    compact(s3_url)
    assert server.fetched("segments") == 0  # this node has made or fetched them before
    assert sum(method == "PUT" and "/segments/" in path for method, path in server.requests) == 2


def test_the_command(pushed: str, node: Node) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["pool", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    node.learn(text(9, 5))
    assert "1 batches of learned text wait" in run("info", pushed)
    assert "Merged 1 learned documents" in run("compact", pushed)
    assert "nothing to merge" in run("compact", pushed)
    assert json.loads(run("compact", pushed, "--tokens", "10", "--json"))["num_batches"] == 0
    assert os.environ["VLLM_DARE_CACHE"]
