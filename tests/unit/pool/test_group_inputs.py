"""Routers on their way into a pool, and through what becomes of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from vllm_dare.cli.pool import app
from vllm_dare.errors import PoolError
from vllm_dare.pool.build import BuildReport
from vllm_dare.pool.group_inputs import read_groups, read_routers
from vllm_dare.pool.merge import merge_pools
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.routing.query import Query
from vllm_dare.routing.router_file import RouterFile, write_item_router, write_user_router

MakePool = Callable[..., tuple[Path, BuildReport]]
ROWS = [("u1", "a likes films .", "users/1"), ("i1", "b likes war .", "items/war")]


def users_router(directory: Path, group: str = "users/1") -> RouterFile:
    path = write_user_router(
        directory,
        groups=[group, "users/nobody has text"],
        centroids=np.eye(2, dtype=np.float32),
        item_ids=["i1", "i2"],
        item_vectors=np.eye(2, dtype=np.float32),
    )
    return RouterFile.open(path)


def items_router(directory: Path) -> RouterFile:
    path = write_item_router(
        directory,
        groups=["items/war"],
        attribute="genre",
        values={"War": "items/war"},
        ranks={},
        rule="first",
    )
    return RouterFile.open(path)


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """A directory as `vllm-dare group users` writes it."""
    directory = tmp_path / "grouped"
    directory.mkdir()
    table = pa.table({"user": ["u1", "u7"], "group": ["users/1", "users/1"]})
    parquet.write_table(table, directory / "assignments.parquet")
    users_router(directory)
    return directory


def routers_of(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("router-*")}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_pool_has_its_routers(make_pool: MakePool, tmp_path: Path) -> None:
    routers = [users_router(tmp_path), items_router(tmp_path)]
    output, report = make_pool("pool", ROWS, routers=routers)
    assert set(report.manifest.routers) == routers_of(output) == {router.path.name for router in routers}
    with RetrievalPool.open(output) as pool:
        pool.check_files()
        pool.verify_checksums()
        pool.verify()
        assert pool.router.route(Query(user="u1")).group == "users/1"
        assert pool.router.route(Query(history=["i2"])).group == "users/nobody has text"
        assert pool.group_segments("users/nobody has text") == ()
        assert pool.router.route(Query(attributes=[("genre", "War")])).group == "items/war"


def test_of_two_of_a_kind_the_later_one_counts(make_pool: MakePool, tmp_path: Path) -> None:
    first, later = users_router(tmp_path, "users/old"), users_router(tmp_path, "users/new")
    _, report = make_pool("pool", ROWS, routers=[first, items_router(tmp_path), later])
    assert report.manifest.routers == [later.path.name, items_router(tmp_path).path.name]


def test_routers_survive_a_merge(make_pool: MakePool, tmp_path: Path) -> None:
    first, _ = make_pool("first", ROWS, routers=[users_router(tmp_path, "users/old"), items_router(tmp_path)])
    second, _ = make_pool("second", ROWS, routers=[users_router(tmp_path, "users/new")])
    third, _ = make_pool("third", ROWS)
    merge_pools([first, second, third], tmp_path / "all")
    with RetrievalPool.open(tmp_path / "all") as pool:
        pool.verify()
        assert pool.router.route(Query(history=["i1"])).group == "users/new"
        assert pool.router.route(Query(attributes=[("genre", "War")])).group == "items/war"
    assert len(routers_of(tmp_path / "all")) == 2


def test_replacing_a_pool_removes_the_routers_it_no_longer_has(make_pool: MakePool, tmp_path: Path) -> None:
    output, _ = make_pool("pool", ROWS, routers=[users_router(tmp_path, "users/old")])
    kept = items_router(tmp_path)
    make_pool("pool", ROWS, routers=[kept], overwrite=True)
    assert routers_of(output) == {kept.path.name}
    make_pool("pool", ROWS, overwrite=True)
    assert routers_of(output) == set()


def test_a_damaged_router_is_not_built_in(make_pool: MakePool, tmp_path: Path) -> None:
    router = users_router(tmp_path)
    content = router.path.read_bytes()
    router.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PoolError, match=r"router .* damaged .*checksum"):
        make_pool("pool", ROWS, routers=[router])
    assert not (tmp_path / "pool").exists()


def test_a_missing_or_damaged_router_is_found(make_pool: MakePool, tmp_path: Path) -> None:
    output, report = make_pool("pool", ROWS, routers=[users_router(tmp_path)])
    path = output / report.manifest.routers[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with RetrievalPool.open(output) as pool:
        pool.check_files()
        for verify in (pool.verify, pool.verify_checksums):
            with pytest.raises(PoolError, match=r"router .*checksum"):
                verify()
    path.unlink()
    with RetrievalPool.open(output) as pool, pytest.raises(PoolError, match="is missing"):
        pool.check_files()


def test_build_takes_directories_and_tables(
    grouped: Path, tmp_path: Path, write_jsonl: Callable[..., Path], tokenizer: str
) -> None:
    documents = write_jsonl("d.jsonl", [{"id": i, "text": text} for i, text, _ in ROWS])
    table = tmp_path / "later.csv"
    table.write_text("user,group\nu7,users/2\n")
    options = ["--tokenizer", tokenizer, "--output", tmp_path / "pool"]
    result = run("build", documents, "--assignments", grouped, "--assignments", table, *options)
    assert result.exit_code == 0, result.output
    with RetrievalPool.open(tmp_path / "pool") as pool:
        assert pool.group_of("user", "u1") == "users/1"
        assert pool.group_of("user", "u7") == "users/2"
        assert pool.router.route(Query(history=["i1"])).group == "users/1"
    assert "users: 2 groups, 2 items, 0 attribute values" in run("info", tmp_path / "pool").stdout
    figures = json.loads(run("info", tmp_path / "pool", "--json").stdout)
    assert figures["routers"] == [
        {"kind": "users", "num_groups": 2, "num_items": 2, "num_attribute_values": 0}
    ]


def test_a_directory_that_is_none_of_ours_is_refused(grouped: Path, tmp_path: Path) -> None:
    assert [router.kind for router in read_routers([grouped, tmp_path / "a.csv"])] == ["users"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PoolError, match=r"empty is a directory without assignments.parquet"):
        read_groups([tmp_path / "empty"])
    with pytest.raises(PoolError, match=r"There is no file or directory .*nodir; check the path"):
        read_groups([grouped, tmp_path / "nodir"])
    with pytest.raises(PoolError, match=r"empty holds 0 files router-\*.safetensors"):
        read_routers([tmp_path / "empty"])
    items_router(grouped)
    with pytest.raises(PoolError, match=r"grouped holds 2 files"):
        read_routers([grouped])
