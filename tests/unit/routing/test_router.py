import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.pool.assignments import Assignments, write_assignments
from vllm_dare.routing.query import Query
from vllm_dare.routing.router import Answer, Router, Step
from vllm_dare.routing.router_file import RouterFile, write_item_router, write_user_router

GROUPS = ["users/0", "users/1", "users/2"]
VECTORS = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [-1.0, 0.5], "nothing": [0.0, 0.0]}


def log(*shares: float) -> np.ndarray:
    return np.log(np.array(shares, np.float32))


@pytest.fixture
def users(tmp_path: Path) -> RouterFile:
    path = write_user_router(
        tmp_path,
        groups=GROUPS,
        centroids=np.array([[2, 0], [0, 0.1], [-1, -1]], np.float32),  # their lengths play no part
        item_ids=list(VECTORS),
        item_vectors=np.array(list(VECTORS.values()), np.float32),
        attributes={"": log(0.5, 0.3, 0.2), "sex=F": log(0.2, 0.7, 0.1), "age=25": log(0.3, 0.3, 0.4)},
    )
    return RouterFile.open(path)


@pytest.fixture
def items(tmp_path: Path) -> RouterFile:
    path = write_item_router(
        tmp_path,
        groups=["items/drama", "items/war", "items/other"],
        attribute="genre",
        values={"Drama": "items/drama", "War": "items/war", "Odd": "items/other", "Army": "items/war"},
        ranks={"Drama": 1, "War": 2, "Army": 2, "Odd": 99},
        rule="largest",
    )
    return RouterFile.open(path)


@pytest.fixture
def assignments(tmp_path: Path) -> Assignments:
    pairs: list[Any] = [("user", "u1", "users/1"), ("item", "a", "items/war")]
    return Assignments.open(write_assignments(tmp_path, pairs))


@pytest.fixture
def router(assignments: Assignments, users: RouterFile, items: RouterFile) -> Router:
    return Router(assignments, [users, items])


@pytest.mark.parametrize(
    ("query", "group", "reason"),
    [
        (Query(), None, "nothing known: global"),
        (Query(group="any", user="u1", history=["a"]), "any", "named by the request"),
        (Query(user="u1", item="a", history=["a"]), "users/1", "user u1 is assigned"),
        (Query(user="new", item="a", history=["a"]), "items/war", "item a is assigned"),
        (
            Query(user="new", history=["a", "b", "x", "a"], attributes=[("sex", "F")]),
            "users/0",
            "history: 3 of 4 items known, cosine 0.89 (next users/1 0.45)",
        ),
        (
            Query(history=["x", "nothing"], attributes=[("sex", "F"), ("sex", "?")]),
            "users/1",
            "attributes sex=F, probability 0.64 (next users/0 0.30)",
        ),
        (
            Query(item="new", attributes=[("genre", "Odd"), ("genre", "War"), ("genre", "Drama")]),
            "items/drama",
            "attribute genre=Drama",
        ),
        (Query(attributes=[("genre", "Army"), ("genre", "War")]), "items/war", "attribute genre=Army"),
        (Query(attributes=[("genre", "Odd")]), "items/other", "attribute genre=Odd"),
        (Query(user="new", history=["x"], attributes=[("genre", "New")]), None, "nothing known: global"),
    ],
)
def test_the_first_answer_counts(router: Router, query: Query, group: str | None, reason: str) -> None:
    assert router.route(query) == Answer(group, reason)


def test_every_step_says_its_own(router: Router) -> None:
    query = Query(user="new", item="new", history=["nothing"], attributes=[("genre", "New"), ("sex", "?")])
    assert list(router.steps(query)) == [
        Step("user", None, "user new is new"),
        Step("item", None, "item new is new"),
        Step("history", None, "history: 1 of 1 items known"),
        Step(
            "attributes",
            None,
            "attributes: users' router does not know genre=New, sex=?; "
            "attributes: items' router does not know genre=New, sex=?",
        ),
    ]


def test_without_files_only_a_named_group_is_known() -> None:
    router = Router(None)
    query = Query(user="u1", item="a", history=["a"], attributes=[("sex", "F")])
    assert [step.group for step in router.steps(query)] == [None] * 4
    assert router.route(query).group is None
    assert router.route(Query(group="x")).group == "x"


def test_what_both_routers_know_goes_by_what_is_asked_for(tmp_path: Path, items: RouterFile) -> None:
    path = write_user_router(
        tmp_path,
        groups=["users/0"],
        centroids=np.ones((1, 2), np.float32),
        item_ids=[],
        item_vectors=np.empty((0, 2), np.float32),
        attributes={"genre=War": log(1)},
    )
    router = Router(None, [items, RouterFile.open(path)])
    attributes = [("genre", "War")]
    assert router.route(Query(attributes=attributes)).group == "users/0"
    assert router.route(Query(item="new", attributes=attributes)).group == "items/war"
    assert router.route(Query(user="new", item="new", attributes=attributes)).group == "users/0"


@given(st.data())
@settings(max_examples=60)
def test_answers_agree_with_the_formulas(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    k, m, d = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 8)), data.draw(st.integers(1, 4))
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    centroids, vectors = (numbers.normal(size=(n, d)).astype(np.float32) for n in (k, m))
    keys = ["", *(f"a={i}" for i in range(5))]
    scores = {key: numbers.normal(size=k).astype(np.float32) for key in keys}
    path = write_user_router(
        tmp_path_factory.mktemp("r"),
        groups=[f"g{i}" for i in range(k)],
        centroids=centroids,
        item_ids=[f"i{i}" for i in range(m)],
        item_vectors=vectors,
        attributes=scores,
    )
    router = Router(None, [RouterFile.open(path)])
    history = data.draw(st.lists(st.integers(0, 10), max_size=8))
    values = data.draw(st.lists(st.integers(0, 7), max_size=4))
    known = [vectors[i] for i in history if i < m]
    expected = None
    if known:
        total = np.sum(known, axis=0, dtype=np.float64)
        expected = f"g{np.argmax([c @ total / np.linalg.norm(c) for c in centroids])}"
    assert router.route(Query(history=[f"i{i}" for i in history])).group == expected
    total = scores[""] + sum(scores[f"a={value}"] for value in values if value < 5)
    expected = f"g{np.argmax(total)}" if any(value < 5 for value in values) else None
    assert router.route(Query(attributes=[("a", str(value)) for value in values])).group == expected


def test_damage_costs_an_answer_and_no_request(router: Router, users: RouterFile, items: RouterFile) -> None:
    for file in (users, items):
        content = bytearray(file.path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        content[start:] = b"\xff" * (len(content) - start)
        with file.path.open("r+b") as damaged:  # the same file, which is mapped
            damaged.write(content)
    with np.errstate(all="ignore"):
        for query in (Query(history=["a"]), Query(attributes=[("genre", "War")])):
            assert router.route(query).group in (None, *GROUPS)


def test_routing_needs_no_engine() -> None:
    code = (
        "import sys, vllm_dare.routing.router\n"
        "print([m for m in ('torch', 'vllm', 'numba', 'pyarrow', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
