"""Naive Bayes of attributes, against the formula one user at a time."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_dare.errors import DareError
from vllm_dare.routing.user_attributes import check_attributes, group_log_odds

LABELS = np.array([0] * 30 + [1] * 20 + [2] * 10 + [-1] * 5, np.int32)
IDS = [f"u{i}" for i in range(len(LABELS))]


def write(path: Path, countries: list[str], ages: list[str]) -> Path:
    rows = [f"{user},{c},{a}" for user, c, a in zip([*IDS, "x"], countries, ages, strict=True)]
    path.write_text("\n".join(["user_id,country,age", *rows]) + "\n")
    return path


def test_against_a_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    countries = [str(rng.choice(["DE", "FR", ""], p=[0.5, 0.3, 0.2])) for _ in range(len(IDS) + 1)]
    ages = [str(rng.choice(["018", "25", "77"], p=[0.6, 0.35, 0.05])) for _ in range(len(IDS) + 1)]
    found = group_log_odds(write(tmp_path / "u.csv", countries, ages), IDS, LABELS, 3)
    prior = np.array([30, 20, 10]) / 60
    np.testing.assert_allclose(found.pop(""), np.log(prior), rtol=1e-6)
    expected = {}
    for name, cells in (("country", countries), ("age", ages)):
        for value in set(cells) - {""}:
            groups = Counter(
                int(group) for group, cell in zip(LABELS, cells, strict=False) if cell == value and group >= 0
            )
            if groups.total() >= 10:
                p = [(groups[g] + 10 * prior[g]) / (groups.total() + 10) for g in range(3)]
                expected[f"{name}={value}"] = np.log(p / prior)
    assert "country=DE" in expected and "age=018" in expected
    assert found.keys() == expected.keys()
    for key, odds in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], odds, rtol=1e-5, atol=1e-7)


def test_values_of_parquet_are_text(tmp_path: Path) -> None:
    table = {"user": IDS, "age": [25 + (i % 2) for i in range(len(IDS))], "paid": [True] * len(IDS)}
    pq.write_table(pa.table(table), tmp_path / "u.parquet")
    found = group_log_odds(tmp_path / "u.parquet", IDS, LABELS, 3)
    assert found.keys() == {"", "age=25", "age=26", "paid=true"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user\nu1\n", "has no column but 'user'"),
        ("who,age\nu1,3\n", "say with a column called user"),
        ("user,age\nz,3\n", r"No user of .*u.csv \(such as z\) has a group"),
        ("user,age\n", "No user of .*u.csv has a group"),
        ("user,age\nu1,3\n,4\n", "u.csv:3 has no user"),
        ("user,age\nu1,3\nu2,4\nu1,5\nu2,6\n", "u.csv:4 has the user u1 again; give each user one row"),
        ("user,user,age\nu1,u1,3\n", "columns user and user; rename or remove"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "u.csv").write_text(text)
    with pytest.raises(DareError, match=message):
        group_log_odds(tmp_path / "u.csv", IDS, LABELS, 3)


def test_a_user_who_is_there_twice_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("user,age\nu1,3\nu1,3\n")
    with pytest.raises(DareError, match=r"u.csv:3 has the user u1 again"):
        check_attributes(tmp_path / "u.csv")
    (tmp_path / "u.csv").write_text("user,age\nu1,3\nu2,3\n")
    check_attributes(tmp_path / "u.csv")


def test_lists_are_no_attributes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["u1"], "tags": [["a", "b"]]}), tmp_path / "u.parquet")
    with pytest.raises(DareError, match=r"column 'tags' of .* an attribute is text or a number"):
        group_log_odds(tmp_path / "u.parquet", IDS, LABELS, 3)
