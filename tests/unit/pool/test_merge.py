from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.merge import merge_pools
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import Segment

MakePool = Callable[..., tuple[Path, BuildReport]]


def texts(segments: tuple[Segment, ...]) -> list[list[int]]:
    return [document.tolist() for segment in segments for document in segment.documents()]


def test_a_merged_pool_holds_the_documents_of_all(make_pool: MakePool, tmp_path: Path) -> None:
    first, _ = make_pool("first", [("u1", "a", "users/1"), ("x", "b", None)])
    second, _ = make_pool("second", [("u1", "c", "users/1"), ("i1", "war", "items/1")])
    merge_pools([first, second], tmp_path / "both")
    with RetrievalPool.open(tmp_path / "both") as pool:
        pool.verify()
        assert texts(pool.group_segments("users/1")) == [[1], [3]]
        assert texts(pool.group_segments("items/1")) == [[8]]
        assert texts(pool.global_segments()) == [[1], [2], [3], [8]]
        assert len(pool.group_segments("users/1")) == len(pool.global_segments()) == 1


def test_keys_stay_with_their_documents_and_later_pools_are_newer(
    make_pool: MakePool, tmp_path: Path
) -> None:
    first, _ = make_pool("first", [("u1", "a", "users/1"), ("x", "b", None)])
    second, _ = make_pool("second", [("u1", "c", "users/1")])
    merge_pools([second, first], tmp_path / "both")
    with RetrievalPool.open(tmp_path / "both") as pool:
        found = [
            (tokens.tolist(), key) for s in pool.global_segments() for tokens, key in s.keyed_documents()
        ]
    user, other = entity_hash("user", "u1"), entity_hash("document", "x")
    assert found == [([3], user), ([1], user), ([2], other)]


def test_the_later_pool_decides_who_belongs_where(make_pool: MakePool, tmp_path: Path) -> None:
    first, _ = make_pool("first", [("u1", "a", "users/1"), ("u2", "a", "users/1")])
    second, _ = make_pool("second", [("u1", "a", "users/2")])
    merge_pools([first, second], tmp_path / "both")
    with RetrievalPool.open(tmp_path / "both") as pool:
        assert pool.group_of("user", "u1") == "users/2"
        assert pool.group_of("user", "u2") == "users/1"


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ("strict", "strict", "strict"),
        ("strict", "relaxed", "relaxed"),
        ("external", "relaxed", "relaxed"),
        ("strict", "external", "external"),
    ],
)
def test_provenance_is_the_least_trusted_one(
    make_pool: MakePool, tmp_path: Path, first: str, second: str, merged: str
) -> None:
    inputs = [make_pool(str(i), [("u", "a", None)], provenance=p)[0] for i, p in enumerate((first, second))]
    merge_pools(inputs, tmp_path / "both")
    with RetrievalPool.open(tmp_path / "both") as pool:
        assert pool.global_segments()[0].header.provenance == merged


@pytest.mark.parametrize(("models", "merged"), [(("m", "m"), "m"), (("m", "n"), None), (("m", None), None)])
def test_a_model_that_all_agree_on_is_kept(
    make_pool: MakePool, tmp_path: Path, models: tuple[str | None, ...], merged: str | None
) -> None:
    inputs = [make_pool(str(i), [("u", "a", None)], model=model)[0] for i, model in enumerate(models)]
    merge_pools(inputs, tmp_path / "both")
    with RetrievalPool.open(tmp_path / "both") as pool:
        assert pool.global_segments()[0].header.model == merged


def test_groups_that_are_kept_apart_do_not_get_into_anybodys_text(
    make_pool: MakePool, tmp_path: Path
) -> None:
    first, _ = make_pool("first", [("u1", "a", "users/1"), ("u2", "b", "users/2")], global_segment=False)
    second, _ = make_pool("second", [("u3", "c", None)])
    for inputs in ([first, second], [second, first]):
        with pytest.raises(PoolError, match=r"first keeps its groups apart .*second does not"):
            merge_pools(inputs, tmp_path / "both")
        assert not (tmp_path / "both").exists()
    merge_pools([first, first], tmp_path / "none")
    with RetrievalPool.open(tmp_path / "none") as pool:
        assert pool.global_segments() == ()


def test_pools_of_two_tokenizers_are_refused_by_name(
    make_pool: MakePool, tmp_path: Path, other_tokenizer: str
) -> None:
    first, _ = make_pool("first", [("u", "a", None)])
    second, _ = make_pool("second", [("u", "a", None)], tokenizer=other_tokenizer)
    with pytest.raises(PoolError, match=r"tokenizer words, .*tokenizer others, .*rebuild one"):
        merge_pools([first, second], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_an_existing_output_is_refused(make_pool: MakePool) -> None:
    first, _ = make_pool("first", [("u", "a", None)])
    with pytest.raises(PoolError, match=r"exists already"):
        merge_pools([first], first)


def test_a_damaged_pool_is_not_merged_into_a_sound_one(make_pool: MakePool, tmp_path: Path) -> None:
    first, _ = make_pool("first", [("u1", "a b c", "users/1")])
    second, _ = make_pool("second", [("u2", "a", None)])
    segment = next((first / "segments").iterdir())
    content = bytearray(segment.read_bytes())
    content[-3] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(content)
    with pytest.raises(PoolError, match="damaged"):
        merge_pools([first, second], tmp_path / "both")
    assert not (tmp_path / "both").exists()
