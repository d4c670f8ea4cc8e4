import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store_server import StoreServer
from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.lock import ReadLock
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.store import follow
from vllm_dare.store.cache import CacheFullError
from vllm_dare.store.follow import Follower
from vllm_dare.store.mirror import Mirror, open_mirror
from vllm_dare.store.remote import Store
from vllm_dare.store.transfer import push_pool

MakePool = Callable[..., Path]
OLD = [("u1", "a likes films", "users/1"), ("u2", "b likes war", "users/2"), ("u3", "c", None)]
NEW = [("u1", "a likes films", "users/1"), ("u2", "b likes space", "users/2")]
ROOT = Path(__file__).parents[3]
SECOND = """
import sys
from vllm_dare.store.mirror import open_mirror
mirror, failure = open_mirror(sys.argv[1])
print(mirror.num_fetched, failure)
"""


@pytest.fixture
def pushed(url: str, make_pool: MakePool) -> str:
    """A store with the pool OLD."""
    push_pool(make_pool("old", OLD, assignments=[("user", "u9", "users/1")]), url)
    return url


def test_only_what_everybody_needs_is_fetched_at_first(pushed: str, tmp_path: Path) -> None:
    mirror = Mirror(pushed)
    mirror.sync()
    assert mirror.num_fetched == 2  # the global segment and the assignments
    with RetrievalPool.open(mirror.pool) as pool:
        pool.verify()
        assert not pool.groups
        assert pool.group_of("user", "u9") == "users/1"
        assert pool.manifest.segments[pool.manifest.global_segments[0]].num_documents == 3
    assert set(mirror.groups) == {"users/1", "users/2"}


def test_groups_come_when_asked_for_and_stay(pushed: str, make_pool: MakePool, tmp_path: Path) -> None:
    mirror = Mirror(pushed)
    mirror.sync({"users/2", "no such group"})
    mirror.sync()
    assert mirror.num_fetched == 3
    with RetrievalPool.open(mirror.pool) as pool:
        assert list(pool.groups) == ["users/2"]
    push_pool(make_pool("new", NEW), pushed, overwrite=True)
    mirror.sync()
    with RetrievalPool.open(mirror.pool) as pool, RetrievalPool.open(tmp_path / "new") as new:
        pool.verify()
        assert list(pool.groups) == ["users/2"]
        assert pool.manifest.groups["users/2"] == new.manifest.groups["users/2"]
    mirror.sync({"users/1"})
    with RetrievalPool.open(mirror.pool) as pool:
        assert pool.manifest.groups == new.manifest.groups


def test_whole_mirrors_have_all(pushed: str, tmp_path: Path) -> None:
    mirror = Mirror(pushed, whole=True)
    mirror.sync()
    with RetrievalPool.open(mirror.pool) as pool, RetrievalPool.open(tmp_path / "old") as old:
        pool.verify()
        assert pool.manifest == old.manifest


def test_a_second_process_fetches_nothing(server: StoreServer, s3_url: str, make_pool: MakePool) -> None:
    push_pool(make_pool("old", OLD), s3_url)
    server.requests.clear()

    def start() -> str:
        command = [sys.executable, "-c", SECOND, s3_url]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert start() == "2 None"
    assert (server.fetched("segments"), server.fetched("manifests")) == (1, 1)
    assert start() == "0 None"
    assert (server.fetched("segments"), server.fetched("manifests")) == (1, 1)


def test_several_at_once_fetch_once(server: StoreServer, s3_url: str, make_pool: MakePool) -> None:
    push_pool(make_pool("old", OLD), s3_url)
    server.requests.clear()
    command = [sys.executable, "-c", SECOND, s3_url]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert sorted(outputs) == ["0 None", "0 None", "2 None"]
    assert server.fetched("segments") == 1


def test_old_files_go_once_nobody_reads_them(pushed: str, make_pool: MakePool) -> None:
    mirror = Mirror(pushed)
    mirror.sync()
    old = RetrievalPool.open(mirror.pool)
    push_pool(make_pool("new", NEW), pushed, overwrite=True)
    mirror.sync()
    old.verify()
    old.close()
    mirror.sync()
    assert len(list((mirror.pool / "segments").iterdir())) == 1


def test_without_the_store_the_cache_serves(server: StoreServer, s3_url: str, make_pool: MakePool) -> None:
    push_pool(make_pool("old", OLD), s3_url)
    server.stop()
    try:
        with pytest.raises(StoreError, match="cannot be used"):
            open_mirror(s3_url)
        server.start()
        open_mirror(s3_url)[0].close()
        server.stop()
        mirror, failure = open_mirror(s3_url)
        assert failure is not None
        with RetrievalPool.open(mirror.pool) as pool:
            pool.verify()
    finally:
        server.start()


def test_an_empty_store(url: str) -> None:
    with pytest.raises(StoreError, match=r"no pool at .* yet"):
        open_mirror(url)
    mirror, failure = open_mirror(url, learns=True)
    assert failure is None
    assert not mirror.pool.exists()


def test_what_can_only_be_read_is_not_learned_into() -> None:
    with pytest.raises(StoreError, match="can be read, but not written to"):
        open_mirror("memory://some/pool", learns=True)


def test_what_arrives_damaged_is_not_used(pushed: str) -> None:
    mirror = Mirror(pushed)
    mirror.sync()
    for file in Store(pushed).files("segments"):
        Store(pushed).write(file.name, b"damaged")
    with pytest.raises(PoolError, match="its checksum is not its name"):
        mirror.sync({"users/1"})
    with RetrievalPool.open(mirror.pool) as pool:
        pool.verify()
        assert not pool.groups


def test_a_lost_file_is_fetched_again(pushed: str) -> None:
    mirror = Mirror(pushed)
    mirror.sync()
    next((mirror.pool / "segments").iterdir()).unlink()
    again = Mirror(pushed)
    again.sync()
    assert again.num_fetched == 1


def test_the_cache_makes_room_by_what_nobody_uses(
    tmp_path: Path, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool("old", OLD)
    stores = [f"file://{tmp_path}/store{n}" for n in range(4)]
    for store in stores:
        push_pool(pool, store)
    with RetrievalPool.open(pool) as opened:
        size = opened.manifest.segments[opened.manifest.global_segments[0]].num_bytes
    monkeypatch.setenv("VLLM_DARE_CACHE_GB", str(2.5 * size / 1e9))
    first, second, third = (Mirror(store) for store in stores[:3])
    first.sync()
    second.sync()
    with pytest.raises(CacheFullError, match="what is in use fills its"):
        third.sync()
    for mirror, used_at in ((first, 2), (second, 1)):
        mirror.close()
        os.utime(mirror.place.root / "users", (used_at, used_at))
    third.sync()
    assert (first.pool / "manifest.json").exists()  # used later than the second
    assert not (second.pool / "manifest.json").exists()
    assert not (second.pool / "segments").exists()
    second = Mirror(stores[1])
    second.sync()
    assert not (first.pool / "segments").exists()
    with RetrievalPool.open(second.pool) as opened:
        opened.verify()


def test_a_bad_limit_is_refused(pushed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DARE_CACHE_GB", "much")
    with pytest.raises(ValueError, match="must be a number of gigabytes above 0, not 'much'"):
        Mirror(pushed).sync()


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_DARE_CACHE", str(tmp_path / "file"))
    with pytest.raises(PoolError, match="set VLLM_DARE_CACHE to a directory"):
        Mirror("file:///x")


class Told:
    """A follower and what it says."""

    def __init__(self, mirror: Mirror, is_failing: bool = False) -> None:
        self.failures: list[str] = []
        self.recoveries = 0
        self.follower = Follower(
            mirror,
            is_failing=is_failing,
            on_failure=lambda error: self.failures.append(str(error)),
            on_recovery=self._recovered,
        )

    def _recovered(self) -> None:
        self.recoveries += 1


def test_an_outage_is_told_once_and_ends_by_itself(
    server: StoreServer, s3_url: str, make_pool: MakePool
) -> None:
    push_pool(make_pool("old", OLD), s3_url)
    mirror, _ = open_mirror(s3_url)
    told = Told(mirror)
    told.follower.round()
    server.stop()
    try:
        for _ in range(3):
            told.follower.want("users/1")
            told.follower.round()
        assert len(told.failures) == 1
        assert told.recoveries == 0
    finally:
        server.start()
    told.follower.round()
    told.follower.round()
    assert (len(told.failures), told.recoveries) == (1, 1)
    with RetrievalPool.open(mirror.pool) as pool:  # what was wanted has come
        assert list(pool.groups) == ["users/1"]


def test_a_group_that_does_not_fit_is_told_of_once(
    pushed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mirror, _ = open_mirror(pushed)
    size = sum(file.stat().st_size for file in (mirror.pool / "segments").iterdir())
    monkeypatch.setenv("VLLM_DARE_CACHE_GB", str((size + 10) / 1e9))
    told = Told(mirror)
    for group in ("users/1", "users/2", "users/1"):
        told.follower.want(group)
        told.follower.round()
    assert len(told.failures) == 1
    assert "has no room" in told.failures[0]
    assert told.recoveries == 0


def test_following_takes_up_new_versions(
    pushed: str, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_TICK_SECONDS", 0.02)
    mirror, _ = open_mirror(pushed)
    told = Told(mirror)
    before = ReadLock(mirror.pool, 0)
    told.follower.start()
    new = push_pool(make_pool("new", NEW), pushed, overwrite=True).global_segments
    told.follower.want("users/2")
    for _ in range(500):
        with RetrievalPool.open(mirror.pool) as pool:
            if list(pool.groups) == ["users/2"] and pool.manifest.global_segments == new:
                break
        told.follower._closing.wait(0.02)
    else:
        pytest.fail("the new version does not come")
    told.follower.close()
    before.release()
    assert told.failures == []
