from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.tensor_file import write_tensor_file
from vllm_dare.routing.router_file import (
    RouterFile,
    attribute_hash,
    write_item_router,
    write_user_router,
)

USERS: dict[str, Any] = {
    "groups": ["users/0", "users/1"],
    "centroids": np.array([[1, 0, 0], [0, 1, 0]], np.float32),
    "item_ids": ["a", "b", "c", "d"],
    "item_vectors": np.arange(12, dtype=np.float32).reshape(4, 3),
    "attributes": {"": np.array([-1, -2], np.float32), "age=25": np.array([-3, -4], np.float32)},
}
ITEMS: dict[str, Any] = {
    "groups": ["items/a", "items/other"],
    "attribute": "genre",
    "values": {"A": "items/a", "B": "items/other", "C": "items/other"},
    "ranks": {"A": 1, "B": 5},
    "rule": "rarest",
}


def test_a_user_router_gives_back_what_was_written(tmp_path: Path) -> None:
    router = RouterFile.open(write_user_router(tmp_path, **USERS))
    router.verify()
    assert (router.kind, router.groups) == ("users", USERS["groups"])
    np.testing.assert_array_equal(router.centroids, USERS["centroids"])
    vectors = dict(zip(router.item_hashes.tolist(), router.item_vectors.tolist(), strict=True))
    assert vectors == {
        entity_hash("item", i): v.tolist()
        for i, v in zip(USERS["item_ids"], USERS["item_vectors"], strict=True)
    }
    scores = dict(zip(router.attribute_hashes.tolist(), router.attribute_scores.tolist(), strict=True))
    assert scores == {attribute_hash(k): v.tolist() for k, v in USERS["attributes"].items()}


def test_an_item_router_gives_back_what_was_written(tmp_path: Path) -> None:
    router = RouterFile.open(write_item_router(tmp_path, **ITEMS))
    router.verify()
    assert (router.kind, router.attribute, router.rule) == ("items", "genre", "rarest")
    found = {
        key: (router.groups[group], rank)
        for key, group, rank in zip(
            router.attribute_hashes.tolist(),
            router.attribute_groups.tolist(),
            router.attribute_ranks.tolist(),
            strict=True,
        )
    }
    assert found == {
        attribute_hash(f"genre={value}"): (group, ITEMS["ranks"].get(value, 0))
        for value, group in ITEMS["values"].items()
    }


def test_the_same_content_has_the_same_name(tmp_path: Path) -> None:
    assert write_user_router(tmp_path, **USERS) == write_user_router(tmp_path, **USERS)
    path = write_user_router(tmp_path, **{**USERS, "attributes": None})
    assert len(RouterFile.open(path).attribute_hashes) == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"groups": []}, "at least one group"),
        ({"groups": ["users/0", "users/0"]}, "'users/0' is there twice"),
        ({"groups": ["users/0"]}, r"centroids have the shape \(2, 3\), but \(1, 3\)"),
        ({"item_ids": ["a", "b", "c"]}, r"item_vectors have the shape \(4, 3\), but \(3, 3\)"),
        ({"item_ids": ["a", "b", "c", "c"]}, "items name one of them twice"),
        ({"centroids": np.zeros((2, 0), np.float32)}, "centroids have the shape"),
        ({"centroids": np.full((2, 3), np.nan, np.float32)}, "centroids hold a number that is not finite"),
        ({"attributes": {"age=1": np.zeros(3, np.float32)}}, r"attributes\['age=1'\] have the shape"),
    ],
)
def test_a_user_router_that_makes_no_sense_is_not_written(
    tmp_path: Path, change: Mapping[str, Any], reason: str
) -> None:
    with pytest.raises(PoolError, match=reason):
        write_user_router(tmp_path, **{**USERS, **change})
    assert not list(tmp_path.iterdir())


def test_a_value_must_have_a_group_of_the_router(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="do not include 'items/b'"):
        write_item_router(tmp_path, **{**ITEMS, "values": {"B": "items/b"}})


@pytest.mark.parametrize(
    "write", [lambda d: write_user_router(d, **USERS), lambda d: write_item_router(d, **ITEMS)]
)
def test_damage_is_found(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        with pytest.raises(PoolError):
            RouterFile.open(path)
    path.write_bytes(content[:-1] + b"\x07")
    with pytest.raises(PoolError, match="checksum"):
        RouterFile.open(path).verify_checksum()


def _arrays(**changes: list[float]) -> dict[str, np.ndarray]:
    content: dict[str, Any] = {
        "item_hashes": [1, 2],
        "attribute_hashes": [1],
        "attribute_groups": [],
        "attribute_ranks": [],
        "centroids": [1, 0],
        "item_vectors": [1, 0, 0, 1],
        "attribute_scores": [-1],
        **changes,
    }
    dtypes = {"item_hashes": np.uint64, "attribute_hashes": np.uint64}
    dtypes |= {"attribute_groups": np.int32, "attribute_ranks": np.int32}
    return {name: np.array(values, dtypes.get(name, np.float32)) for name, values in content.items()}


def _made_up(directory: Path, arrays: dict[str, np.ndarray], **changes: str) -> Path:
    metadata = {
        "kind": "router",
        "format_version": "1",
        "route": "users",
        "groups": '["g"]',
        "dimension": "2",
    }
    return write_tensor_file(directory, arrays, metadata | changes, prefix="router-")


def test_the_made_up_file_is_a_router_as_long_as_nothing_is_changed(tmp_path: Path) -> None:
    RouterFile.open(_made_up(tmp_path, _arrays())).verify()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "assignments"}, "not a vllm-dare router file"),
        ({"format_version": "2"}, "newer vllm-dare"),
        ({"route": "films"}, "not consistent"),
        ({"groups": "[]"}, "not consistent"),
        ({"groups": "[1]"}, "not consistent"),
        ({"groups": '[""]'}, "not consistent"),
        ({"groups": '["\\ud800"]'}, "not consistent"),
        ({"groups": "{"}, "not consistent"),
        ({"groups": '["g", "h"]'}, "lengths of its arrays disagree"),
        ({"dimension": "0"}, "not consistent"),
        ({"dimension": "-1"}, "not consistent"),
        ({"dimension": "99999999999999999999"}, "not consistent"),
        ({"dimension": "4"}, "lengths of its arrays disagree"),
        ({"route": "items"}, "lengths of its arrays disagree"),
    ],
)
def test_a_header_that_is_made_up_is_refused(tmp_path: Path, changes: Mapping[str, str], reason: str) -> None:
    with pytest.raises(PoolError, match=reason):
        RouterFile.open(_made_up(tmp_path, _arrays(), **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"item_hashes": [2, 1]}, "not sorted"),
        ({"item_hashes": [1, 1]}, "not sorted"),
        ({"centroids": [np.inf, 0]}, "not finite"),
        ({"item_vectors": [np.nan, 0, 0, 1]}, "not finite"),
        ({"attribute_scores": [np.nan]}, "not finite"),
    ],
)
def test_content_that_is_made_up_is_found(
    tmp_path: Path, changes: Mapping[str, list[float]], reason: str
) -> None:
    with pytest.raises(PoolError, match=reason):
        RouterFile.open(_made_up(tmp_path, _arrays(**changes))).verify()


@pytest.mark.parametrize("place", [-1, 1])
def test_a_group_that_does_not_exist_is_found(tmp_path: Path, place: int) -> None:
    arrays = _arrays(
        item_hashes=[],
        attribute_groups=[place],
        attribute_ranks=[0],
        centroids=[],
        item_vectors=[],
        attribute_scores=[],
    )
    router = RouterFile.open(_made_up(tmp_path, arrays, route="items", dimension="1"))
    with pytest.raises(PoolError, match="group that does not exist"):
        router.verify()
