"""`vllm-dare group users`, from tables to a directory that a pool takes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vllm_dare import extras
from vllm_dare.cli.app import main
from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.group_inputs import group_router, read_groups
from vllm_dare.routing.interactions import Positives
from vllm_dare.routing.query import Query
from vllm_dare.routing.router import Router

pytest.importorskip("implicit")

TASTES = 3
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; its exit status."""

    def run_command(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["vllm-dare", "group", "users", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0)

    return run_command


@pytest.fixture
def table(tmp_path: Path, make_positives: Callable[..., Positives]) -> Path:
    """150 users u0, u1, ... with three tastes, 45 items, and one user who likes nothing."""
    positives = make_positives(num_users=150, num_items=45, tastes=TASTES)
    rows = [f"u{u},{i},1" for u, i in zip(positives.users, positives.items, strict=True)]
    path = tmp_path / "interactions.csv"
    path.write_text("\n".join(["user,item,label", *rows, rows[0], "grump,1,0"]) + "\n")
    return path


def assigned(directory: Path) -> dict[str, str]:
    return {user: group for _, user, group in read_assignments(directory / "assignments.parquet")}


def test_groups_are_the_tastes_and_new_users_find_theirs(
    tmp_path: Path, table: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.csv").write_text(
        "user,country\n" + "".join(f"u{u},{'DE' if u % TASTES else 'FR'}\n" for u in range(150))
    )
    (tmp_path / "items.csv").write_text("item,name\n" + "".join(f"{i},Film {i}\n" for i in range(45)))
    output = tmp_path / "groups"
    status = run(
        *(table, "--output", output, "--method", "als", "--groups", TASTES, "--json", tmp_path / "r.json"),
        *(
            "--attributes",
            tmp_path / "users.csv",
            "--items",
            tmp_path / "items.csv",
            "--title-column",
            "name",
        ),
    )
    shown = capsys.readouterr().out
    assert status == 0
    groups = assigned(output)
    assert len(groups) == 150
    of_taste = [{groups[f"u{u}"] for u in range(taste, 150, TASTES)} for taste in range(TASTES)]
    assert sorted(map(len, of_taste)) == [1, 1, 1]
    assert set.union(*of_taste) == {"users/0", "users/1", "users/2"}

    router = Router(None, [group_router(output)])
    for taste in range(TASTES):
        history = [str(item) for item in range(taste, 9, TASTES)]
        assert {router.route(Query(history=history)).group} == of_taste[taste]
    assert {router.route(Query(attributes=[("country", "FR")])).group} == of_taste[0]

    report = json.loads((output / "report.json").read_text())
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert report["data"]["users_without_positives"] == 1
    assert report["data"]["repeated_rows"] == 1
    assert [group["users"] for group in report["groups"]] == [50, 50, 50]
    assert report["attributes"] == ["country=FR", "country=DE"]
    quality = report["quality"]
    assert quality["chance"] == pytest.approx(1 / 3)
    assert quality["neighbour_overlap"] > 0.95
    assert quality["new_users"]["few"] > 0.85
    assert quality["new_users"]["all"] == 1
    for group in report["groups"]:
        (taste,) = (t for t in range(TASTES) if of_taste[t] == {group["name"]})
        assert {int(item["item"]) % TASTES for item in group["favourites"]} == {taste}
        assert group["favourites"][0]["title"] == f"Film {group['favourites'][0]['item']}"
    assert (output / "groups.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "users/0",
        "Film ",
        "by chance 33.3%",
        "no positive interaction, who have no group: 1.",
        "Wrote 3 groups of 150",
    ):
        assert part in shown


@pytest.mark.parametrize("method", ["als", "bpr", "lightgcn"])
def test_the_same_seed_gives_the_same_files(
    tmp_path: Path, table: Path, run: Run, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "lightgcn":
        pytest.importorskip("torch_geometric")
        from vllm_dare.routing import user_groups
        from vllm_dare.routing.lightgcn import learn_lightgcn

        monkeypatch.setitem(user_groups._LEARN, "lightgcn", lambda *all: learn_lightgcn(*all, steps=20))
    for name in ("a", "b"):
        assert run(table, "--output", tmp_path / name, "--method", method, "--groups", 4, "--seed", 5) == 0
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert files[0] == files[1]  # the router's name is its content's checksum
    assert len(files[0]) == 4
    for name in ("assignments.parquet", "report.json", "groups.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_given_embeddings_auto_and_overwrite(
    tmp_path: Path, table: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa

    rng = np.random.default_rng(0)
    users = [*range(5, 150), 999]  # the first five have none, and nobody knows the last
    vectors = np.eye(6)[[user % 6 for user in users]] + rng.normal(0, 0.05, (len(users), 6))
    pq.write_table(
        pa.table({"user": [f"u{user}" for user in users], "embedding": list(vectors)}), tmp_path / "e.parquet"
    )
    output = tmp_path / "groups"
    options = (table, "--output", output, "--embeddings", tmp_path / "e.parquet", "--prefix", "g")
    assert run(*options) == 0
    groups = assigned(output)
    assert len({groups[f"u{user}"] for user in users}) == 6
    assert groups["u999"] == groups["u147"]
    for user in range(5):  # placed by what they like, which tells u % 3 alone
        assert groups[f"u{user}"] in {groups[f"u{user + 6}"], groups[f"u{user + 9}"]}
    report = json.loads((output / "report.json").read_text())
    assert report["data"]["users_placed_by_history"] == 5
    assert report["data"]["users_with_embedding_alone"] == 1
    assert max(report["tried"], key=lambda row: row["silhouette"])["groups"] == 6
    assert {group["name"] for group in report["groups"]} == {f"g{i}" for i in range(6)}
    assert all(group.startswith("g") for _, _, group in read_groups([output]))

    capsys.readouterr()
    assert run(*options) == 1
    assert "exists already; choose another --output" in capsys.readouterr().err
    assert run(*options, "--overwrite", "--groups", 3) == 0
    assert len(set(assigned(output).values())) == 3


def test_few_users_and_small_groups(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.csv"
    path.write_text("user,item\na,x\na,y\nb,x\nb,y\nc,z\n")
    options = (path, "--method", "als", "--output")
    assert run(*options, tmp_path / "one", "--groups", 2) == 0
    shown = capsys.readouterr().out
    assert "too small and went into the nearest one: 1." in shown and "Too few users" in shown
    assert set(assigned(tmp_path / "one").values()) == {"users/0"}
    assert run(*options, tmp_path / "two", "--groups", 2, "--min-size", 1) == 0
    groups = assigned(tmp_path / "two")
    assert groups["a"] == groups["b"] != groups["c"]
    assert run(*options, tmp_path / "auto") == 0
    assert run(*options, tmp_path / "single", "--groups", 1) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "151"], "--groups 151 is more than the 150 users"),
        (["--groups", "0"], "--groups must be at least 1, or auto, not 0"),
        (["--groups", "-3"], "--groups must be at least 1, or auto, not -3"),
        (["--groups", "many"], "--groups takes a whole number or auto, not 'many'"),
        (["--min-size", "0"], "--min-size must be at least 1"),
        (["--user-column", "person"], "has no column 'person'; its columns are user, item, label"),
        (["--min-weight", "2"], "no label reaches --min-weight 2: lower it"),
        (["--title-column", "name"], "Give --items and --title-column together"),
        (["--embeddings", "no.npy"], "There is no file no.npy"),
        (["--attributes", "no.csv"], "There is no file no.csv"),
        (["--items", "no.csv", "--title-column", "name"], "There is no file no.csv"),
        (["--json", "/proc/nobody/r.json"], "there is no directory /proc/nobody"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    table: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    before = sorted(tmp_path.iterdir())
    assert run(table, "--output", tmp_path / "groups", "--method", "als", *arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("Error: ") and captured.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_embeddings_of_other_users(
    tmp_path: Path, table: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "e.npy", np.ones((4, 2)))
    assert run(table, "--output", tmp_path / "groups", "--embeddings", tmp_path / "e.npy") == 1
    assert "e.npy (such as 0) has positive interactions (as user u0 has)" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "package"), [("als", "implicit"), ("lightgcn", "torch-geometric")])
def test_a_package_that_is_missing(
    tmp_path: Path,
    table: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    package: str,
) -> None:
    def missing(name: str) -> None:
        if name.startswith(package.replace("-", "_")):
            raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    assert run(table, "--output", tmp_path / "groups", "--method", method) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"Error: {package} cannot be imported")
    assert "`pip install 'vllm-dare[groups]'`" in shown


@pytest.mark.parametrize("related", [True, False])
def test_it_says_when_embeddings_have_nothing_to_do_with_what_users_like(
    tmp_path: Path, table: Path, run: Run, capsys: pytest.CaptureFixture[str], related: bool
) -> None:
    import pyarrow as pa

    rng = np.random.default_rng(0)
    places = np.arange(150) % TASTES if related else rng.permutation(150) % TASTES
    vectors = np.eye(TASTES)[places] + rng.normal(0, 0.05, (150, TASTES))
    pq.write_table(
        pa.table({"user": [f"u{user}" for user in range(150)], "embedding": list(vectors)}),
        tmp_path / "e.parquet",
    )
    assert run(table, "--output", tmp_path / "g", "--embeddings", tmp_path / "e.parquet", "--groups", 3) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("hardly better than chance" in said) is not related
