"""Who reads which version, across processes too."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.lock import READERS_NAME, changing, has_older_readers, locked, version_of
from vllm_dare.pool.pool import RetrievalPool

MakePool = Callable[..., tuple[Path, BuildReport]]
OLD, NEW = [("u1", "a likes films", "users/1")], [("u1", "a likes war", "users/1")]
READER = """
import sys
from vllm_dare.pool.pool import RetrievalPool
pool = RetrievalPool.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def files(directory: Path) -> set[str]:
    return {path.name for path in (directory / "segments").iterdir()}


def test_only_readers_of_another_version_count(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", OLD)
    assert not has_older_readers(pool)
    with RetrievalPool.open(pool):
        assert not has_older_readers(pool)
        make_pool("pool", NEW, overwrite=True)
        assert has_older_readers(pool)
        with RetrievalPool.open(pool):
            assert has_older_readers(pool)
    assert not has_older_readers(pool)


def test_old_files_go_with_the_first_change_after_their_last_reader(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", OLD)
    old = files(pool)
    reader = RetrievalPool.open(pool)
    make_pool("pool", NEW, overwrite=True)
    assert old < files(pool)
    reader.close()
    with RetrievalPool.open(pool):  # an engine that has taken up the new version
        make_pool("pool", [*NEW, ("u2", "b", None)], overwrite=True)
        assert not old & files(pool)


@pytest.mark.parametrize("end", ["orderly", "killed"])
def test_another_process_is_seen_until_it_ends(make_pool: MakePool, end: str) -> None:
    pool, _ = make_pool("pool", OLD)
    command = [sys.executable, "-c", READER, str(pool)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        make_pool("pool", NEW, overwrite=True)
        assert has_older_readers(pool)
        if end == "killed":
            process.kill()
        else:
            process.stdin.close()
        process.wait(30)
        assert not has_older_readers(pool)


def test_without_the_file_it_is_made_and_without_leave_nothing_is_locked(make_pool: MakePool) -> None:
    pool, _ = make_pool("pool", OLD)
    (pool / READERS_NAME).unlink(missing_ok=True)
    with RetrievalPool.open(pool):
        assert (pool / READERS_NAME).read_bytes() == b""
    (pool / READERS_NAME).unlink()
    (pool / READERS_NAME).mkdir()  # which nobody can open for writing
    with RetrievalPool.open(pool) as reader:
        assert reader.group_segments("users/1")
        assert not has_older_readers(pool)


def test_the_target_of_a_link_is_not_made(make_pool: MakePool, tmp_path: Path) -> None:
    pool, _ = make_pool("pool", OLD)
    for name in (READERS_NAME, "lock"):
        (pool / name).unlink(missing_ok=True)
        (pool / name).symlink_to(tmp_path / "target")
    with RetrievalPool.open(pool) as reader:
        assert reader.group_segments("users/1")
    with pytest.raises(OSError, match="symbolic link"), locked(pool):
        pass
    assert not (tmp_path / "target").exists()


def test_a_pool_without_segments_directory_cannot_be_changed(tmp_path: Path) -> None:
    for make in (Path.touch, os.mkfifo, None):
        segments = tmp_path / "segments"
        segments.unlink(missing_ok=True)
        if make is not None:
            make(segments)
        with pytest.raises(PoolError, match=r"Cannot open the directory .*segments"), changing(tmp_path):
            pass


def test_versions_differ_and_stay(make_pool: MakePool, tmp_path: Path) -> None:
    pool, _ = make_pool("pool", OLD)
    before = version_of(pool)
    assert version_of(pool) == before > 0
    make_pool("pool", NEW, overwrite=True)
    assert version_of(pool) != before
    assert version_of(tmp_path) == 0
