"""Newer versions of a pool, round by round of the background work."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllm_dare.pool import watch as module
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.watch import PoolWatch

MakePool = Callable[..., tuple[Path, BuildReport]]
OLD = [("u1", "a likes films", "users/1"), ("u2", "b likes war", "users/2")]
NEW = [("u1", "a likes war", "users/1")]


class Watched:
    def __init__(self, directory: Path, verify: bool = True) -> None:
        self.failures: list[str] = []
        self.pool = RetrievalPool.open(directory)
        self.rooms: list[RetrievalPool] = []
        self.watch = PoolWatch(
            self.pool,
            verify=verify,
            make_room=self.rooms.append,
            on_failure=lambda error: self.failures.append(str(error)),
        )

    def look(self) -> RetrievalPool | None:
        self.watch.look()
        return self.watch.take()


@pytest.fixture
def directory(make_pool: MakePool) -> Path:
    return make_pool("pool", OLD)[0]


@pytest.fixture
def watched(directory: Path) -> Iterator[Watched]:
    watched = Watched(directory)
    yield watched
    watched.pool.close()


def test_a_new_version_is_handed_over_once(watched: Watched, make_pool: MakePool) -> None:
    assert watched.look() is None
    make_pool("pool", NEW, overwrite=True)
    found = watched.look()
    assert found is not None
    assert list(found.groups) == ["users/1"]
    assert watched.rooms == [found]  # room was made before it was handed over
    assert watched.look() is None
    assert watched.failures == []
    found.close()


def test_only_the_newest_of_several_is_handed_over(watched: Watched, make_pool: MakePool) -> None:
    make_pool("pool", NEW, overwrite=True)
    watched.watch.look()
    make_pool("pool", [*OLD, *NEW, ("x", "c", "users/9")], overwrite=True)
    found = watched.look()
    assert found is not None
    assert "users/9" in found.groups
    found.close()


def test_the_same_pool_written_again_is_no_new_version(directory: Path, watched: Watched) -> None:
    watched.look()
    manifest = directory / "manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()
    assert watched.look() is None  # gone for a moment
    manifest.write_bytes(content)
    assert watched.look() is None
    assert watched.failures == []


def test_a_directory_that_was_replaced_is_a_new_version(
    directory: Path, watched: Watched, make_pool: MakePool
) -> None:
    other, _ = make_pool("other", NEW)
    shutil.rmtree(directory)
    assert watched.look() is None
    other.rename(directory)
    found = watched.look()
    assert found is not None
    assert list(found.groups) == ["users/1"]
    found.close()


def damage(directory: Path) -> None:
    path = min((directory / "segments").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_version_is_refused_until_it_is_mended(
    directory: Path, watched: Watched, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.look()
    other, _ = make_pool("other", NEW)
    intact = {path.name: path.read_bytes() for path in (other / "segments").iterdir()}
    damage(other)
    for path in (other / "segments").iterdir():
        shutil.copy(path, directory / "segments")
    for path in other.glob("*.*"):
        shutil.copy(path, directory)
    for _ in range(5):
        assert watched.look() is None
    assert len(watched.failures) == 1  # told once
    assert "damaged" in watched.failures[0]
    for name, content in intact.items():
        (directory / "segments" / name).write_bytes(content)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 2)
    found = next(found for _ in range(40) if (found := watched.look()) is not None)
    assert list(found.groups) == ["users/1"]
    found.close()


def test_without_verifying_the_content_is_not_read(directory: Path, make_pool: MakePool) -> None:
    watched = Watched(directory, verify=False)
    make_pool("pool", NEW, overwrite=True)
    damage_of_new = RetrievalPool.open(directory)
    name = damage_of_new.manifest.groups["users/1"][0]
    damage_of_new.close()
    path = directory / "segments" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert watched.look() is not None
    assert watched.failures == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tokenizer": "other"}, "tokenizer"), ({"global_segment": False}, "global segment")],
)
def test_a_version_of_another_kind_is_refused(
    watched: Watched, make_pool: MakePool, other_tokenizer: str, options: dict[str, object], message: str
) -> None:
    if "tokenizer" in options:
        options = {"tokenizer": other_tokenizer}
    make_pool("pool", NEW, overwrite=True, **options)
    assert watched.look() is None
    assert watched.look() is None
    assert len(watched.failures) == 1
    assert message in watched.failures[0]


@pytest.mark.parametrize("content", [b"", b"{", b'{"format_version": 99}', b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(directory: Path, watched: Watched, content: bytes) -> None:
    (directory / "manifest.json").write_bytes(content)
    assert watched.look() is None
    assert len(watched.failures) == 1


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyError("no room"), RecursionError("no room")])
def test_no_failure_ends_the_looking(
    watched: Watched, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_self: RetrievalPool) -> None:
        raise error

    make_pool("pool", NEW, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(RetrievalPool, "check_files", fail)
        assert watched.look() is None
        assert watched.look() is None
    assert len(watched.failures) == 1
    assert "no room" in watched.failures[0]
    make_pool("pool", [*OLD, *NEW], overwrite=True)
    found = watched.look()
    assert found is not None
    found.close()


def test_it_looks_by_itself(directory: Path, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    watched = Watched(directory)
    watched.watch.start(lambda: None)
    make_pool("pool", NEW, overwrite=True)
    found = None
    for _ in range(3000):
        found = watched.watch.take()
        if found is not None:
            break
        watched.watch._thread.join(0.01)
    watched.watch.close()
    watched.watch._thread.join(10)
    assert not watched.watch._thread.is_alive()
    assert found is not None
