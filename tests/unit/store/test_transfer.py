import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from vllm_dare.cli.app import app
from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.store.latest import read_latest
from vllm_dare.store.remote import Store
from vllm_dare.store.transfer import pull_pool, push_pool

MakePool = Callable[..., Path]

OLD = [("u1", "a likes films", "users/1"), ("u2", "b likes war", "users/2")]
NEW = [("u1", "a likes films", "users/1"), ("u2", "b likes space", "users/2")]


def test_a_pool_comes_back_whole(url: str, make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool("pool", OLD, assignments=[("user", "u9", "users/1")])
    push_pool(pool, url)
    pull_pool(url, tmp_path / "copy")
    with RetrievalPool.open(tmp_path / "copy") as copy, RetrievalPool.open(pool) as before:
        copy.verify()
        assert copy.manifest == before.manifest
        assert copy.group_of("user", "u9") == "users/1"
    with pytest.raises(PoolError, match="exists already"):
        pull_pool(url, tmp_path / "copy")


def test_a_new_version_adds_only_what_is_not_there(url: str, make_pool: MakePool, tmp_path: Path) -> None:
    push_pool(make_pool("pool", OLD), url)
    before = Store(url).files()
    with pytest.raises(StoreError, match=r"a pool at .* already"):
        push_pool(make_pool("new", NEW), url)
    push_pool(tmp_path / "new", url, overwrite=True)
    after = Store(url).files()
    unchanged = [file for file in after if file in before]
    assert len([file for file in unchanged if file.name.startswith("segments")]) == 3  # all of the old one's
    assert len([file for file in after if file.name.startswith("segments")]) == 5
    assert [one.manifest for one in read_latest(Store(url)).replaced] == [
        file.name[-37:-5] for file in before if file.name.startswith("manifests")
    ]
    with RetrievalPool.open(tmp_path / "new") as new:
        assert pull_pool(url, tmp_path / "copy") == new.manifest


def test_an_interrupted_push_changes_nothing(
    url: str, make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_pool(make_pool("pool", OLD), url)
    before = read_latest(Store(url))
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(Store, "upload", lambda *_: 1 / 0)
        push_pool(make_pool("new", NEW), url, overwrite=True)
    assert read_latest(Store(url)).manifest == before.manifest
    push_pool(tmp_path / "new", url, overwrite=True)
    assert read_latest(Store(url)).manifest != before.manifest


def test_a_store_that_can_only_be_read(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool("pool", OLD)
    with pytest.raises(StoreError, match="can be read, but not written to"):
        push_pool(pool, "memory://some/pool")
    push_pool(pool, f"file://{tmp_path}/store")
    fsspec.filesystem("memory").put(f"{tmp_path}/store", "/some/pool", recursive=True)
    pull_pool("memory://some/pool", tmp_path / "copy")
    with RetrievalPool.open(tmp_path / "copy") as copy:
        copy.verify()


def test_there_is_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no pool at .* yet; put one there with `vllm-dare pool push`"):
        pull_pool(url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_commands(url: str, make_pool: MakePool, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["pool", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    pool = make_pool("pool", OLD)
    assert run("push", str(pool), url).endswith(": 3 segment files.\n")
    assert "No learned text waits" in run("info", url)
    assert json.loads(run("info", url, "--json")) == json.loads(run("info", str(pool), "--json"))
    assert "Pulled" in run("pull", url, str(tmp_path / "copy"))
    assert run("verify", str(tmp_path / "copy"))
    with pytest.raises(StoreError, match="--overwrite"):
        run("push", str(pool), url)
    run("push", str(pool), url, "--overwrite")


@pytest.mark.parametrize("damage", [lambda content: content[:9], lambda content: content[:-1] + b"\x99"])
def test_a_push_repairs_a_store_that_has_lost_a_file(
    url: str, make_pool: MakePool, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    pool = make_pool("pool", OLD)
    push_pool(pool, url)
    store = Store(url)
    lost, cut = [file.name for file in store.files() if file.name.startswith("segments")][:2]
    store.remove(lost)
    with store.fs.open(store.path(cut), "wb") as file:
        file.write(damage(store.read(cut) or b""))
    with pytest.raises(PoolError):
        pull_pool(url, tmp_path / "copy")
    push_pool(pool, url, overwrite=True)
    with RetrievalPool.open(pool) as opened:
        assert pull_pool(url, tmp_path / "copy") == opened.manifest
    with RetrievalPool.open(tmp_path / "copy") as copy:
        copy.verify()


def test_a_pool_directory_is_no_store(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool("pool", OLD)
    with pytest.raises(StoreError, match="is a pool directory, not a store"):
        push_pool(pool, f"file://{pool}")
    assert not (pool / "latest").exists()
    with pytest.raises(PoolError, match="is not a pool directory"):
        push_pool(tmp_path / "nothing", f"file://{tmp_path / 'store'}")


@pytest.mark.parametrize("url", ["s3://", "s3:/bucket/pool", "/mnt/pool", "", "file://"])
def test_what_is_no_url_is_refused(make_pool: MakePool, url: str) -> None:
    with pytest.raises(StoreError, match="is not the URL of a store"):
        push_pool(make_pool("pool", OLD), url)
