import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from vllm_dare.store.outbox import Outbox, number_of
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
        if documents:
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


def damage(store: Store, name: str) -> None:
    """Leave half of a file."""
    content = store.read(name)
    assert content is not None
    store.write(name, content[: len(content) // 2])


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


def test_a_budget_cuts_a_pool_that_nothing_waits_for(pushed: str, node: Node, tmp_path: Path) -> None:
    before = read_latest(node.store)
    report = compact(pushed, 5)
    assert (report.num_tokens, report.num_cut) == (None, 0)
    assert read_latest(node.store).manifest == before.manifest
    report = compact(pushed, 3)
    assert (report.num_batches, report.num_tokens, report.num_cut) == (0, 3, 2)
    assert held(pushed, tmp_path) == [[3, 3], [4]]
    assert held(pushed, tmp_path, "users/2") == [[3, 3]]
    cut = read_latest(node.store)
    assert [one.manifest for one in cut.replaced] == [before.manifest]
    assert compact(pushed, 3).num_tokens is None
    assert read_latest(node.store).manifest == cut.manifest
    with pytest.raises(PoolError, match="A budget of 0 tokens leaves no document"):
        compact(pushed, 0)


def test_a_budget_cuts_groups_without_a_global_segment(url: str, make_pool: MakePool, tmp_path: Path) -> None:
    push_pool(make_pool("old", [*OLD[:2], ("u4", "w5 w5", "users/1")], global_segment=False), url)
    assert compact(url, 6).num_tokens is None
    assert compact(url, 5).num_tokens == 2  # of the shares 3 and 1, rounded down to whole documents
    assert held(url, tmp_path, "users/1") == [[6, 6]]
    assert compact(url, 5).num_tokens is None


def test_a_place_that_nobody_has_used_is_left_alone(url: str) -> None:
    with pytest.raises(StoreError, match=r"There is no pool at .* yet, and no learned text: check the URL"):
        compact(url, 1)
    assert Store(url).files() == []


def test_a_damaged_batch_is_set_aside_and_the_others_are_merged(
    pushed: str, node: Node, tmp_path: Path
) -> None:
    node.learn(text(1, 5))
    node.learn(text(2, 6))
    node.learn(text(3, 7))
    files = [file.name for file in node.store.files("live")]
    whole = node.store.read(files[1])
    assert whole is not None
    damage(node.store, files[1])
    report = compact(pushed)
    assert (report.num_batches, report.num_new, list(report.set_aside)) == (2, 2, [files[1]])
    assert f"{pushed}/{files[1]} is damaged: its checksum is not its name" in report.set_aside[files[1]]
    assert held(pushed, tmp_path)[3:] == [[5], [7]]
    latest = read_latest(node.store)
    assert (latest.absorbed, latest.set_aside) == ({node.outbox.name: 3}, {node.outbox.name: [2]})
    again = compact(pushed)
    assert (again.num_batches, again.num_tokens, list(again.set_aside)) == (0, None, [files[1]])
    assert [file.name for file in node.store.files("live")] == [files[1]]
    node.store.write(files[1], whole)  # it was only half uploaded
    assert compact(pushed).num_new == 1
    assert held(pushed, tmp_path)[3:] == [[5], [7], [6]]
    assert read_latest(node.store).set_aside == {}
    assert node.store.files("live") == []


def test_its_node_sends_it_again(pushed: str, node: Node, tmp_path: Path) -> None:
    for key in (1, 2):
        node.learn(text(key, 4 + key))
        damage(node.store, node.store.files("live")[-1].name)
    (node.outbox.directory / node.store.files("live")[0].name.rsplit("/", 1)[-1]).write_bytes(
        b"bad here, too"
    )
    assert len(compact(pushed).set_aside) == 2
    assert read_latest(node.store).set_aside == {node.outbox.name: [1, 2]}
    node.learn(text(3, 7))
    report = compact(pushed)
    assert (report.num_batches, len(report.set_aside)) == (2, 1)
    assert held(pushed, tmp_path)[3:] == [[6], [7]]
    node.outbox.tend(node.store, read_latest(node.store))
    assert [number_of(path) for path in node.outbox.directory.glob("*.safetensors")] == [1]


def test_a_store_with_nothing_but_damage(url: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(1, 5))
    damage(node.store, node.store.files("live")[0].name)
    for tokens in (None, 3):
        assert len(compact(url, tokens).set_aside) == 1
    assert read_latest(node.store).manifest is None
    node.learn()  # sends again
    compact(url)
    assert held(url, tmp_path) == [[5]]


def test_what_was_set_aside_and_removed_may_come_again(pushed: str, node: Node, tmp_path: Path) -> None:
    node.learn(text(1, 5))
    name = node.store.files("live")[0].name
    damage(node.store, name)
    node.learn(text(2, 6))
    compact(pushed)
    node.store.remove(name)
    assert compact(pushed).set_aside == {}
    node.learn()
    compact(pushed)
    assert held(pushed, tmp_path)[3:] == [[6], [5]]


def test_a_push_keeps_what_was_set_aside(pushed: str, node: Node, make_pool: MakePool) -> None:
    node.learn(text(1, 5))
    damage(node.store, node.store.files("live")[0].name)
    node.learn(text(2, 6))
    compact(pushed)
    push_pool(make_pool("new", OLD[:1]), pushed, overwrite=True)
    assert read_latest(node.store).set_aside == {node.outbox.name: [1]}


def test_a_batch_of_a_newer_format_waits_for_who_can_read_it(
    pushed: str, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("vllm_dare.store.batch._FORMAT_VERSION", 2)
        node.learn(text(1, 5))
        (name,) = (file.name for file in node.store.files("live"))
    (reason,) = compact(pushed).set_aside.values()
    assert reason.startswith(f"The file {pushed}/{name} has format 2") and "upgrade vllm-dare" in reason
    monkeypatch.setattr("vllm_dare.store.batch._FORMAT_VERSION", 2)
    compact(pushed)
    assert held(pushed, tmp_path)[3:] == [[5]]


def test_a_store_that_goes_away_damages_nothing(
    server: StoreServer, s3_url: str, tmp_path: Path, info: TokenizerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(s3_url, tmp_path / "node", info)
    node.learn(text(1, 5))
    fetch = Store.fetch

    def too_late(self: Store, *arguments: Any) -> Path:
        server.stop()
        try:
            return fetch(self, *arguments)
        finally:
            server.start()

    with monkeypatch.context() as patched:
        patched.setattr(Store, "fetch", too_late)
        with pytest.raises(StoreError, match="cannot be used"):
            compact(s3_url)
    assert compact(s3_url).num_batches == 1


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

    def late(self: Lease, manifest: str, *merged: Any) -> None:
        if next(others, False):
            self._is_held = False  # it is not renewed any more, and its time is over …
            self._closing.set()
            latest = self.latest.model_copy(update={"lease": None})
            self._tag = self._swap.replace("latest", latest.encode(), self._tag)
            stale = self._tag
            compact(pushed)  # … so that another one does the work
            self._tag = stale
        publish(self, manifest, *merged)

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


def test_learned_text_without_a_pool_is_told(url: str, node: Node) -> None:
    def said() -> str:
        done = CliRunner().invoke(app, ["pool", "info", url])
        assert done.exit_code == 1
        return str(done.exception)

    assert "put one there with `vllm-dare pool push`" in said()
    node.learn(text(9, 5))
    assert (
        f"1 batches of learned text wait there: make it of them with `vllm-dare pool compact {url}`" in said()
    )


def test_the_command(pushed: str, node: Node) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["pool", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        warnings.append(done.stderr)
        return done.stdout

    warnings: list[str] = []

    node.learn(text(9, 5))
    assert "1 batches of learned text wait" in run("info", pushed)
    assert "Merged 1 learned documents" in run("compact", pushed)
    assert "nothing to merge" in run("compact", pushed)
    assert json.loads(run("compact", pushed, "--tokens", "10", "--json"))["num_batches"] == 0
    assert "no more than 6 tokens, so that nothing was cut" in run("compact", pushed, "--tokens", "6")
    assert "nothing to merge" in (cut := run("compact", pushed, "--tokens", "4"))
    assert "The 2 oldest tokens went, so that the pool has 4 now" in cut
    assert not any("Warning" in warning for warning in warnings)
    node.learn(text(8, 6))
    (file,) = node.store.files("live")
    damage(node.store, file.name)
    assert "nothing else to merge" in run("compact", pushed)
    assert "Warning: 1 batches of learned text cannot be read and were set aside" in warnings[-1]
    assert warnings[-1].count(f"{pushed}/{file.name} is damaged") == 1
    assert "1 batches of learned text wait for `vllm-dare pool compact`; 1 of them could" in run(
        "info", pushed
    )
    found = json.loads(run("compact", pushed, "--json"))
    assert (found["num_set_aside"], list(found["set_aside"])) == (1, [file.name])
    assert os.environ["VLLM_DARE_CACHE"]
