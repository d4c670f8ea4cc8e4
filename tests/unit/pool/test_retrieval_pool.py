import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import Segment

MakePool = Callable[..., tuple[Path, BuildReport]]
ROWS = [("u1", "a likes films", "users/1"), ("u2", "b likes war", "users/2"), ("x", "c", None)]


@pytest.fixture
def directory(make_pool: MakePool) -> Path:
    return make_pool("pool", ROWS)[0]


def segment_files(directory: Path) -> list[Path]:
    return sorted((directory / "segments").iterdir())


def test_segments_are_mapped_once_and_only_when_asked_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real = Segment.open
    monkeypatch.setattr(Segment, "open", lambda path: opened.append(path) or real(path))
    with RetrievalPool.open(str(directory)) as pool:
        assert not opened
        assert pool.group_segments("users/1") is pool.group_segments("users/1")
        assert pool.global_segments() is pool.global_segments()
        assert len(opened) == 2


def test_an_unknown_group_has_no_segments(directory: Path) -> None:
    with RetrievalPool.open(directory) as pool:
        assert pool.group_segments(None) == ()
        assert pool.group_segments("users/77") == ()
        assert pool.group_segments("") == ()


def test_the_segments_of_the_least_recently_used_group_are_unmapped(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_dare.pool.pool._MAX_MAPPED_GROUPS", 1)
    with RetrievalPool.open(directory) as pool:
        first = pool.group_segments("users/1")
        pool.group_segments("users/2")
        again = pool.group_segments("users/1")
        assert again is not first
        assert again[0].tokens.tolist() == first[0].tokens.tolist()


def test_counts(directory: Path) -> None:
    with RetrievalPool.open(directory) as pool:
        assert pool.num_tokens == 3 + 3 + 7  # both groups, and all of it again in the global segment
        assert pool.num_bytes == sum(path.stat().st_size for path in segment_files(directory))
        assert pool.directory == directory


def test_another_tokenizer_is_refused_by_name(directory: Path) -> None:
    with RetrievalPool.open(directory) as pool:
        pool.check_tokenizer("same by any name", pool.tokenizer.fingerprint)
        with pytest.raises(
            PoolError, match=r"tokenizer words .* uses org/big \(abc\).*`vllm-dare pool build "
        ):
            pool.check_tokenizer("org/big", "abc")


def test_progress_is_in_bytes(directory: Path) -> None:
    for check in (RetrievalPool.verify, RetrievalPool.verify_checksums):
        calls: list[tuple[int, int]] = []
        with RetrievalPool.open(directory) as pool:
            check(pool, lambda done, total: calls.append((done, total)))  # noqa: B023
            assert calls[-1] == (pool.num_bytes, pool.num_bytes)
            assert len(calls) == 3


def refuse(directory: Path, match: str) -> None:
    with RetrievalPool.open(directory) as pool, pytest.raises(PoolError, match=match):
        pool.check_files()


def test_a_missing_segment_is_refused(directory: Path) -> None:
    segment_files(directory)[0].unlink()
    refuse(directory, "is missing")


def test_a_truncated_segment_is_refused(directory: Path) -> None:
    path = segment_files(directory)[1]
    path.write_bytes(path.read_bytes()[:-4])
    refuse(directory, "is damaged")


def test_a_segment_of_another_pool_is_refused(
    make_pool: MakePool, directory: Path, other_tokenizer: str
) -> None:
    other, _ = make_pool("other", ROWS, tokenizer=other_tokenizer)
    shutil.copy(segment_files(other)[0], segment_files(directory)[0])
    refuse(directory, "is not the one that the pool's manifest describes")


def test_missing_assignments_are_refused(directory: Path) -> None:
    next(directory.glob("assignments-*")).unlink()
    refuse(directory, "is missing")


def test_a_changed_byte_is_found_by_both_ways_of_verifying(directory: Path) -> None:
    for path in [*segment_files(directory), *directory.glob("assignments-*")]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with RetrievalPool.open(directory) as pool:
            pool.check_files()
            for verify in (pool.verify, pool.verify_checksums):
                with pytest.raises(PoolError, match=r"checksum"):
                    verify()
        path.write_bytes(content)


def test_a_pool_without_groups_knows_nobody(make_pool: MakePool) -> None:
    output, _ = make_pool("plain", [("u1", "a", None)])
    with RetrievalPool.open(output) as pool:
        assert pool.assignments is None
        assert pool.group_of("user", "u1") is None
        pool.verify()


def test_closing_keeps_segments_that_somebody_holds(directory: Path) -> None:
    pool = RetrievalPool.open(directory)
    segment = pool.global_segments()[0]
    pool.close()
    pool.close()
    gc.collect()
    assert segment.tokens[-1] == -1
