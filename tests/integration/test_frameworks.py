"""From tables to knowledge with commands alone: prompts about users and items, and their texts."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "frameworks"
USERS, ITEMS = 100, 40
ENGINE_ARGS = '{"enforce_eager": true, "kv_cache_memory_bytes": 1073741824}'


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, demo_model: str) -> Path:
    """A folder with prompts about 100 users and 40 items, and the texts that were written for them."""
    folder = tmp_path_factory.mktemp("frameworks")
    users = [row["user_id"] for row in _table("users.csv")]
    (folder / "groups.csv").write_text(
        "user,group\n" + "".join(f"{user},users/{int(user) % 8}\n" for user in users)
    )
    common = ("--items", EXAMPLE / "items.csv")
    about_users = ("--interactions", EXAMPLE / "interactions.csv", "--users", EXAMPLE / "users.csv")
    about_users += ("--groups", folder / "groups.csv", "--limit", USERS, "--routing")
    _run("prompts", "--framework", "kar", "--about", "users", *common, *about_users, "--output", folder / "u")
    _run(
        "prompts", "--framework", "rlmrec", "--about", "items", *common, "--routing", "--output", folder / "i"
    )
    (folder / "prompts.jsonl").write_bytes((folder / "u").read_bytes() + (folder / "i").read_bytes())
    _run(
        *("generate", "--model", demo_model, "--prompts", folder / "prompts.jsonl"),
        *("--pool", folder / "pool", "--learn", "--max-tokens", "24", "--max-num-seqs", "8"),
        *("--engine-args", ENGINE_ARGS, "--output", folder / "out.jsonl", "--json", folder / "out.json"),
    )
    return folder


def test_every_subject_has_a_text(work: Path) -> None:
    rows = {row["id"]: row for row in _rows(work / "out.jsonl")}
    prompts = {row["id"]: row for row in _rows(work / "prompts.jsonl")}
    assert rows.keys() == prompts.keys() and len(rows) == USERS + ITEMS
    assert {row["finish_reason"] for row in rows.values()} <= {"stop", "length"}
    assert all(row["completion_tokens"] for row in rows.values())
    assert Counter(key[0] for key in rows) == {"u": USERS, "i": ITEMS}


def test_texts_keep_their_groups_and_are_learned(work: Path) -> None:
    rows = _rows(work / "out.jsonl")
    assert [
        row for row in rows if row["id"][0] == "u" and row["group"] != f"users/{int(row['id'][1:]) % 8}"
    ] == []
    summary = json.loads((work / "out.json").read_text())
    assert summary["failed"] == 0 and summary["learned"]["documents"] > 0
    info = json.loads(_run("pool", "info", work / "pool" / "live", "--json"))
    assert {group["name"] for group in info["biggest_groups"]} >= {"users/0"}


def test_prompts_are_about_what_users_chose(work: Path) -> None:
    titles = {row["item_id"]: row["title"] for row in _table("items.csv")}
    chosen: dict[str, set[str]] = {}
    for row in _table("interactions.csv"):
        chosen.setdefault(row["user_id"], set()).add(titles[row["item_id"]])
    for row in _rows(work / "u"):
        content = row["messages"][0]["content"]
        assert {title for title in titles.values() if title in content} == chosen[row["user"]]


def _run(*arguments: Any) -> str:
    command = [sys.executable, "-m", "vllm_dare.cli.app", *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=300)
    assert result.returncode == 0, arguments
    return result.stdout


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _table(name: str) -> list[dict[str, str]]:
    with (EXAMPLE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
