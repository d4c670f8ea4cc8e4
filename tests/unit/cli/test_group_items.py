"""`group items` and `group explain`, from a table to an answer."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from vllm_dare.cli.group import app
from vllm_dare.errors import DareError
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.group_inputs import read_groups, read_routers
from vllm_dare.routing.query import Query
from vllm_dare.routing.router_file import RouterFile

ITEMS = "movie_id,genres\n1,Drama\n2,Drama|War\n3,Odd\n4,\n5,War\n6,Drama\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "movies.csv"
    path.write_text(ITEMS)
    return path


@pytest.fixture
def groups(table: Path, tmp_path: Path) -> Path:
    result = run("items", table, "--attribute", "genres", "--output", tmp_path / "g", "--min-size", 2)
    assert result.exit_code == 0, result.output
    assert "items/Drama" in result.stdout
    assert f"Wrote 2 groups of 5 of 6 items to {tmp_path / 'g'}." in result.stdout
    assert "2 values have no group of at least 2 items: Odd, War" in result.stdout
    assert "1 items without genres are in no group: 4" in result.stdout
    return tmp_path / "g"


def test_items_writes_a_table_a_router_and_a_report(groups: Path) -> None:
    assert sorted(path.suffix for path in groups.iterdir()) == [".json", ".parquet", ".safetensors"]
    rows = pq.read_table(groups / "assignments.parquet").to_pydict()
    expected = ["items/Drama", "items/Drama", "items/other", "items/other", "items/Drama"]
    assert rows == {"item": ["1", "2", "3", "5", "6"], "group": expected}
    assert list(read_groups([groups])) == [
        ("item", i, g) for i, g in zip(rows["item"], expected, strict=True)
    ]
    (router,) = read_routers([groups])
    router.verify()
    report = json.loads((groups / "report.json").read_text())
    assert report["groups"] == [
        {"group": "items/Drama", "items": 3, "values": ["Drama"]},
        {"group": "items/other", "items": 2, "values": ["Odd", "War"]},
    ]
    assert report["items_without_values"] == ["4"]


def test_a_map_a_prefix_and_json(table: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("Drama: serious\nWar: serious\nOdd: odd\n")
    options = [
        "--map",
        tmp_path / "map.yaml",
        "--prefix",
        "films/",
        "--min-size",
        1,
        "--json",
        tmp_path / "report.json",
    ]
    result = run("items", table, "--attribute", "genres", "--output", tmp_path / "g", *options)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["group"]: row["items"] for row in report["groups"]} == {"films/serious": 4, "films/odd": 1}
    assert report == json.loads((tmp_path / "g" / "report.json").read_text())


def test_an_output_is_replaced_only_when_told(groups: Path, table: Path, tmp_path: Path) -> None:
    arguments = ["items", table, "--attribute", "genres", "--min-size", 1, "--output"]
    before = sorted(groups.iterdir())
    result = run(*arguments, groups)
    assert isinstance(result.exception, DareError)
    assert "exists already; choose another --output, or replace it with --overwrite" in str(result.exception)
    assert run(*arguments, groups, "--overwrite").exit_code == 0
    assert len(list(groups.iterdir())) == 3
    assert sorted(groups.iterdir()) != before
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    result = run(*arguments, other, "--overwrite")
    assert "is not a directory of groups" in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "movies.csv", "other"]


def test_a_failure_leaves_nothing(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vllm_dare.routing.router_file.write_item_router", full)
    result = run("items", table, "--attribute", "genres", "--output", tmp_path / "g", "--min-size", 1)
    assert "No space left on device" in str(result.exception)
    assert isinstance(result.exception, DareError)
    assert [path.name for path in tmp_path.iterdir()] == ["movies.csv"]


def test_explain_asks_a_directory_of_groups(groups: Path) -> None:
    result = run("explain", groups, "--item", 2, "--attribute", "genres=Odd", "--json")
    assert json.loads(result.stdout) == {
        "group": "items/Drama",
        "reason": "item 2 is assigned",
        "steps": [
            {"step": "item", "group": "items/Drama", "reason": "item 2 is assigned"},
            {"step": "attributes", "group": "items/other", "reason": "attribute genres=Odd"},
        ],
    }
    text = run(
        "explain", groups, "--item", "new", "--attribute", "genres=War", "--attribute", "genres=Drama"
    ).stdout
    assert "item new is new" in text
    assert "Group: items/Drama (attribute genres=Drama)." in text
    assert "Group: none (nothing known: global)." in run("explain", groups, "--user", "u").stdout


@pytest.fixture
def pool(groups: Path, tmp_path: Path, save_words: Callable[[Path], str]) -> Path:
    documents = [
        Document(str(i), token_ids=np.array([1, 2, 3], np.int32), group="items/Drama") for i in (1, 2)
    ]
    routers = [RouterFile.open(next(groups.glob("router-*")))]
    tokenizer = save_words(tmp_path / "words")
    for name, global_segment in (("pool", True), ("groups-only", False)):
        build_pool(documents, tokenizer, tmp_path / name, routers=routers, global_segment=global_segment)
    return tmp_path / "pool"


@pytest.fixture
def save_words() -> Callable[[Path], str]:
    from tokenizers import Tokenizer, models

    def save(directory: Path) -> str:
        directory.mkdir()
        Tokenizer(models.WordLevel({f"w{i}": i for i in range(8)}, unk_token="w0")).save(
            str(directory / "tokenizer.json")
        )
        return str(directory)

    return save


def test_explain_says_what_text_a_pool_has(pool: Path) -> None:
    text = run("explain", pool, "--item", 1).stdout
    assert "Text: 2 documents of the group, and everybody's 2 documents." in text
    text = run("explain", pool, "--attribute", "genres=War").stdout
    assert "Text: the pool has none for the group; drafts come from everybody's 2 documents." in text
    text = run("explain", pool, "--user", "new").stdout
    assert "Text: drafts come from everybody's 2 documents." in text
    text = run("explain", pool.parent / "groups-only", "--user", "new").stdout
    assert "Text: drafts come from no text (the pool has no global segment)." in text
    figures = json.loads(run("explain", pool, "--group", "items/Drama", "--json").stdout)
    assert (figures["documents"], figures["global_documents"]) == (2, 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "Say what the request says"),
        (["--history", "1,,2"], "dare_history: an id must be a non-empty string"),
        (["--attribute", "Drama"], "'Drama', which is not of the form 'name=value'"),
        (["--group", ""], "dare_group must be a non-empty string"),
    ],
)
def test_explain_refuses_what_a_request_would_be_refused_for(
    groups: Path, options: list[str], reason: str
) -> None:
    result = run("explain", groups, *options)
    assert isinstance(result.exception, DareError)
    assert reason in str(result.exception)


def test_explain_needs_a_pool_or_groups(tmp_path: Path) -> None:
    assert "There is no directory" in str(run("explain", tmp_path / "none", "--user", "u").exception)
    assert "holds 0 files router-*" in str(run("explain", tmp_path, "--user", "u").exception)


def test_a_query_of_a_directory_asks_as_a_pool_does(groups: Path) -> None:
    from vllm_dare.cli.group_explain import _router_of

    query = Query(item="3")
    assert _router_of(groups, query).route(query).group == "items/other"
