"""`vllm-dare prompts` on the example's tables."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "frameworks"
TABLES = ("--items", EXAMPLE / "items.csv", "--interactions", EXAMPLE / "interactions.csv")


def _run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_dare.cli.app", "prompts", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_users(tmp_path: Path) -> None:
    output = tmp_path / "prompts.jsonl"
    groups = tmp_path / "groups.csv"
    groups.write_text("user,group\n" + "".join(f"{n},users/{n % 3}\n" for n in range(1, 121) if n != 5))
    users = ("--users", EXAMPLE / "users.csv", "--groups", groups, "--max-tokens", 64, "--routing")
    options = ("--framework", "kar", "--about", "users", *TABLES, *users, "--history", 4)
    result = _run(*options, "--output", output)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"Wrote 120 prompts to {output}: 1,") and lines[0].endswith(
        " characters and 4.0 titles on average."
    )
    assert lines[1:] == [
        "What has rating >= 4 counts as liked (62% of all).",
        f"1 of them have no group in {groups}.",
    ]
    rows = {row["user"]: row for row in _rows(output)}
    assert len(rows) == 120
    row = rows["7"]
    assert row.keys() == {"id", "messages", "user", "group", "history", "max_tokens"}
    assert (row["id"], row["group"], row["max_tokens"]) == ("u7", "users/1", 64)
    assert len(row["history"]) == 4 and "group" not in rows["5"]

    again = _run(*options, "--output", output)
    assert again.returncode == 1 and "exists; use --overwrite" in again.stderr
    assert _run(*options, "--output", output, "--overwrite", "--limit", 3).returncode == 0
    assert len(_rows(output)) == 3


def test_items_with_a_framework_of_ones_own(tmp_path: Path) -> None:
    output = tmp_path / "prompts.jsonl"
    own = f"{EXAMPLE / 'own_framework.py'}:build"
    result = _run("--framework", own, "--about", "items", *TABLES[:2], "--output", output)
    assert result.returncode == 0, result.stderr
    assert "Wrote 40 prompts" in result.stdout
    first = _rows(output)[0]
    assert first["prompt"].startswith("Write a description of this item.\nTitle: The ")
    assert first["prompt"].endswith("\nDescription:\n") and "\nTags: " in first["prompt"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--framework", "karl"), "There is no framework 'karl'; there are kar, once, trawl, rlmrec"),
        (("--framework", "nowhere.py:build"), "There is no file nowhere.py"),
        (("--items", "nowhere.csv"), "There is no file nowhere.csv"),
        (("--title-column", "headline"), "has no column 'headline'"),
        (("--groups", "nowhere.csv"), "There is no file or directory nowhere.csv"),
        (("--min-interactions", "99"), "lower --min-interactions"),
        (("--output", "prompts.parquet"), "name it .jsonl"),
        (("--output", str(EXAMPLE / "items.csv"), "--overwrite"), "is the file"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    result = _run(
        *("--framework", "kar", "--about", "users", *TABLES, "--output", tmp_path / "p.jsonl"), *options
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_examples_data_is_what_its_script_writes(tmp_path: Path) -> None:
    folder = tmp_path / "frameworks"
    folder.mkdir()
    (tmp_path / "demo").symlink_to(EXAMPLE.parent / "demo")
    script = folder / "make_data.py"
    script.write_text((EXAMPLE / "make_data.py").read_text(encoding="utf-8"))
    subprocess.run([sys.executable, str(script)], check=True, timeout=60)
    for name in ("items.csv", "users.csv", "interactions.csv"):
        assert (folder / name).read_text() == (EXAMPLE / name).read_text(), name
