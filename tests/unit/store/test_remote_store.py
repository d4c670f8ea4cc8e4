from pathlib import Path

import pytest

from tests.store_server import StoreServer
from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.tensor_file import content_hash
from vllm_dare.store.location import is_url, read_location
from vllm_dare.store.remote import Store
from vllm_dare.store.swap import swap_of


def test_files_come_back_as_they_went(url: str, tmp_path: Path) -> None:
    store = Store(url + "/")
    (tmp_path / "file").write_bytes(b"x" * 10**6)
    name = f"segments/{content_hash(tmp_path / 'file')}.safetensors"
    assert store.files() == []
    assert store.read("latest") is None
    store.write("latest", b"{}")
    store.upload(tmp_path / "file", name)
    assert store.read("latest") == b"{}"
    assert [(file.name, file.num_bytes) for file in store.files()] == [("latest", 2), (name, 10**6)]
    assert [file.name for file in store.files("segments")] == [name]
    assert store.fetch(name, tmp_path).read_bytes() == b"x" * 10**6
    store.remove(name)
    store.remove(name)
    assert store.files("segments") == []


def test_what_is_damaged_or_missing_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    store = Store(url)
    store.write(f"segments/{'0' * 32}.safetensors", b"something else")
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(PoolError, match="its checksum is not its name"):
        store.fetch(f"segments/{'0' * 32}.safetensors", here)
    with pytest.raises(StoreError, match="is missing; push the pool again"):
        store.fetch(f"segments/{'1' * 32}.safetensors", here)
    assert list(here.iterdir()) == []


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"file://{tmp_path}/store")

    def half(path: str, content: bytes) -> None:
        Path(path).write_bytes(content[:2])
        raise OSError("the disk is full")

    monkeypatch.setattr(store.fs, "pipe_file", half)
    with pytest.raises(StoreError, match="the disk is full"):
        store.write("a", b"abcd")
    assert list((tmp_path / "store").iterdir()) == []


def test_an_unreachable_store_is_one_sentence(server: StoreServer, s3_url: str) -> None:
    store = Store(s3_url)
    server.stop()
    try:
        with pytest.raises(StoreError, match=r"cannot be used \(Could not connect.*\); check its address"):
            store.read("latest")
    finally:
        server.start()
    assert store.read("latest") is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [("nope://x", "is not the URL of a store"), ("s3://no-such-bucket/x", "bucket does not exist")],
)
def test_bad_urls(server: StoreServer, bad: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store(bad).write("latest", b"")


def test_a_missing_bucket_is_no_empty_store(server: StoreServer) -> None:
    store = Store("s3://no-such-bucket/x")
    for read in (store.read, swap_of(store).read):
        with pytest.raises(StoreError, match=r"no-such-bucket.*bucket does not exist"):
            read("latest")


@pytest.mark.parametrize("bad", ["file://tmp/x", "file:tmp/x", "file://./tmp/x/"])
def test_a_file_url_needs_a_path_from_the_root(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="has no absolute path; give one with three slashes"):
        Store(bad)
    assert Store(f"file:{tmp_path}").root == Store(f"file://{tmp_path}").root == str(tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(
        StoreError, match="gs://x needs a package that is not installed: Please install gcsfs"
    ):
        Store("gs://x")


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("s3://a", "file:/a", "file:///a", "hf://datasets/a/b")))
    assert not any(map(is_url, ("pool", "./pool", "/a/b:c", "C:pool", "s3:/a")))
    assert read_location("pool") == Path("pool")
    assert read_location("s3://a/b") == "s3://a/b"
    with pytest.raises(ValueError, match="a directory or a URL"):
        read_location(3)
