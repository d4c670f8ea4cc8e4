import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vllm_dare.cli.pool import app
from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.manifest import read_manifest
from vllm_dare.pool.pool import RetrievalPool

Write = Callable[..., Path]
ROWS = [
    {"id": 1, "text": "a likes films .", "group": "users/1"},
    {"id": 2, "text": "b likes war .", "group": "users/2"},
    {"id": 3, "text": "c"},
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def pool(tmp_path: Path, write_jsonl: Write, tokenizer: str) -> Path:
    output = tmp_path / "pool"
    result = run("build", write_jsonl("d.jsonl", ROWS), "--tokenizer", tokenizer, "--output", output)
    assert result.exit_code == 0, result.output
    return output


def test_build_says_what_it_built(tmp_path: Path, write_jsonl: Write, tokenizer: str) -> None:
    rows = [*ROWS, {"id": 3, "text": "b"}, {"id": 4, "text": ""}, {"id": 5}, {"text": "a"}]
    documents = write_jsonl("d.jsonl", rows)
    assignments = tmp_path / "a.csv"
    assignments.write_text("user,group\n9,users/1\n")
    output = tmp_path / "pool"
    options = ["--assignments", assignments, "--provenance", "relaxed", "--model", "m", "--skip-bad"]
    result = run("build", documents, "--tokenizer", tokenizer, "--output", output, *options)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"Built {output}: 3 documents, 9 tokens, 2 groups, ")
    assert lines[1] == "1 documents gave way to a later one with the same id."
    assert lines[2] == "1 documents without any text were left out."
    assert lines[3].startswith("None of the 1 documents without a group is in the assignments")
    assert lines[4].startswith(
        f"2 rows were skipped; the first: {documents}:6 has neither text nor token_ids"
    )
    with RetrievalPool.open(output) as built:
        assert built.group_of("user", 9) == "users/1"
        assert built.global_segments()[0].header.model == "m"


def test_build_says_which_documents_could_be_anybodys(
    tmp_path: Path, write_jsonl: Write, tokenizer: str
) -> None:
    assignments = write_jsonl("a.jsonl", [{"user": 1, "group": "users/1"}, {"item": 1, "group": "items/1"}])
    documents = write_jsonl("d.jsonl", [{"id": 1, "text": "a"}])
    options = ["--tokenizer", tokenizer, "--output", tmp_path / "pool", "--assignments", assignments]
    result = run("build", documents, *options)
    assert "1 documents are in no group, because their id is both a user's and an item's" in result.stdout


def test_build_says_that_assignments_have_other_ids(
    tmp_path: Path, write_jsonl: Write, tokenizer: str
) -> None:
    assignments = write_jsonl("a.jsonl", [{"user": 7, "group": "users/1"}])
    options = ["--tokenizer", tokenizer, "--output", tmp_path / "pool", "--assignments", assignments]
    result = run("build", write_jsonl("d.jsonl", [{"id": "u7", "text": "a"}]), *options)
    assert str(result.exception).startswith("None of the 1 documents without a group is in the assignments")
    assert not (tmp_path / "pool").exists()
    result = run("build", write_jsonl("d.jsonl", ROWS), *options)
    assert result.exit_code == 0
    assert "documents are such as '3', assignments such as user '7'" in result.stdout


def test_build_refuses_to_overwrite_unless_told(
    pool: Path, write_jsonl: Write, tokenizer: str, tmp_path: Path
) -> None:
    arguments = ["build", tmp_path / "d.jsonl", "--tokenizer", tokenizer, "--output", pool]
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, PoolError)
    assert run(*arguments, "--overwrite").exit_code == 0


def test_build_without_global_segment(tmp_path: Path, write_jsonl: Write, tokenizer: str) -> None:
    output = tmp_path / "pool"
    documents = write_jsonl("d.jsonl", ROWS[:2])
    assert run("build", documents, "--tokenizer", tokenizer, "--output", output, "--no-global").exit_code == 0
    with RetrievalPool.open(output) as built:
        assert built.global_segments() == ()


def test_info_as_a_table_and_as_json(pool: Path) -> None:
    table = run("info", pool).stdout
    for expected in ("words", "external", "users/1", "documents", "biggest groups"):
        assert expected in table
    figures = json.loads(run("info", pool, "--json").stdout)
    assert figures["tokenizer"]["name"] == "words"
    assert (figures["num_documents"], figures["num_tokens"], figures["num_groups"]) == (3, 9, 2)
    assert figures["provenance"] == ["external"]
    assert figures["biggest_groups"][0] == {"name": "users/1", "num_documents": 1, "num_tokens": 4}


def test_info_escapes_markup_in_group_names(tmp_path: Path, write_jsonl: Write, tokenizer: str) -> None:
    documents = write_jsonl("d.jsonl", [{"id": 1, "text": "a", "group": "[/bold]"}])
    run("build", documents, "--tokenizer", tokenizer, "--output", tmp_path / "pool")
    assert "[/bold]" in run("info", tmp_path / "pool").stdout


def test_verify_passes_an_intact_pool_and_refuses_a_damaged_one(pool: Path) -> None:
    assert f"{pool} is intact (3 segment files)." in run("verify", pool).stdout
    path = next((pool / "segments").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    result = run("verify", pool)
    assert result.exit_code == 1
    assert isinstance(result.exception, PoolError)


def test_merge(pool: Path, tmp_path: Path) -> None:
    result = run("merge", pool, pool, "--output", tmp_path / "both")
    assert f"Merged 2 pools into {tmp_path / 'both'}: 6 documents, 18 tokens, 2 groups" in result.stdout


def test_prune(pool: Path, tmp_path: Path) -> None:
    result = run("prune", pool, "--output", tmp_path / "small", "--keep", "50%")
    assert result.stdout.startswith(f"Pruned {pool} to {tmp_path / 'small'}: 9 tokens before, ")
    figures = json.loads(run("prune", pool, "--output", tmp_path / "few", "--tokens", 9, "--json").stdout)
    assert figures == {"tokens_before": 9, "tokens_after": 9}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "Give either --tokens or --keep"),
        (["--tokens", 5, "--keep", "10%"], "Give either --tokens or --keep"),
        (["--keep", "0%"], "--keep takes a percentage .* not '0%'"),
        (["--keep", "101%"], "--keep takes a percentage .* not '101%'"),
        (["--keep", "0.5"], "--keep takes a percentage .* not '0.5'"),
        (["--keep", "few%"], "--keep takes a percentage .* not 'few%'"),
        (["--keep", "nan%"], "--keep takes a percentage .* not 'nan%'"),
    ],
)
def test_prune_refuses_other_budgets(pool: Path, tmp_path: Path, options: list[object], match: str) -> None:
    result = run("prune", pool, "--output", tmp_path / "small", *options)
    assert result.exit_code == 1
    assert re.search(match, str(result.exception))
    assert not (tmp_path / "small").exists()


def test_refresh(pool: Path, write_jsonl: Write, tokenizer: str) -> None:
    new = write_jsonl("new.jsonl", [{"id": 30, "text": "war war"}, {"id": 31}])
    result = run("refresh", pool, new, "--tokens", 100, "--tokenizer", tokenizer, "--skip-bad")
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"Refreshed {pool}: 9 tokens before, 11 now; 1 documents came, 0 gave way to a new one of the same "
        "id, 0 went because they were the oldest."
    )
    assert lines[1].startswith(f"1 rows were skipped; the first: {new}:2 has neither")
    figures = json.loads(
        run("refresh", pool, new, "--tokens", 5, "--tokenizer", tokenizer, "--skip-bad", "--json").stdout
    )
    assert (figures["tokens_before"], figures["replaced_documents"], figures["skipped_rows"]) == (11, 1, 1)
    assert figures["tokens_after"] <= 5


def test_drop(pool: Path) -> None:
    result = run("drop", pool, "--id", "1")
    assert result.stdout == (
        f"Removed id '1' from {pool}: 2 documents or passages, counted in their group and where everybody's "
        "text is, in 2 segment files.\n"
    )
    assert isinstance(run("drop", pool, "--id", "1").exception, PoolError)


def test_drop_finds_a_user_whatever_the_ids_of_the_documents(
    tmp_path: Path, write_jsonl: Write, tokenizer: str
) -> None:
    rows = [
        {"id": "u19", "user": 19, "text": "a likes war .", "group": "users/1"},
        {"id": "more", "user": "19", "text": "b"},
        {"id": "19", "item": "3", "text": "c"},
    ]
    pool = tmp_path / "pool"
    run("build", write_jsonl("d.jsonl", rows), "--tokenizer", tokenizer, "--output", pool)
    assert f"Removed user '19' from {pool}: 3 documents" in run("drop", pool, "--user", "19").stdout
    with RetrievalPool.open(pool) as left:
        assert [document.tolist() for s in left.global_segments() for document in s.documents()] == [[3]]


@pytest.mark.parametrize("options", [[], ["--user", "1", "--id", "1"]])
def test_drop_wants_one_name(pool: Path, options: list[str]) -> None:
    assert str(run("drop", pool, *options).exception).startswith(
        "Give one of --user, --item, --id and --group"
    )


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vllm_dare.cli.app", "pool", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_an_error_is_one_sentence_on_stderr(tmp_path: Path) -> None:
    with start("info", tmp_path) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout == b""
    assert stderr.decode().startswith(f"Error: {tmp_path} is not a pool directory")
    assert stderr.count(b"\n") == 1


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, tokenizer: str) -> None:
    documents = tmp_path / "d.jsonl"
    os.mkfifo(documents)  # the build waits for documents until it is interrupted
    (tmp_path / "out").mkdir()
    with (
        start("build", documents, "--tokenizer", tokenizer, "--output", tmp_path / "out" / "pool") as process,
        documents.open("wb") as pipe,
    ):
        pipe.write(b'{"id": 1, "text": "a"}\n')
        pipe.flush()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert not list((tmp_path / "out").iterdir())


def test_ctrl_c_in_a_change_says_to_make_it_again(pool: Path) -> None:
    with RetrievalPool.open(pool), start("drop", pool, "--group", "users/1", "--wait", 60) as process:
        while "users/1" in read_manifest(pool).groups:  # then it waits until the old files are read no more
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, b"")
    assert errors.startswith(b"Interrupted: the pool is whole") and errors.endswith(
        b"run the same command again.\n"
    )


def test_documents_are_added_to_what_was_learned(pool: Path, write_jsonl: Write, tokenizer: str) -> None:
    rows = [{"id": 9, "text": "a likes war .", "group": "users/1"}, {"id": 3, "text": ""}, {"id": 4}]
    options = ["--tokenizer", tokenizer, "--skip-bad"]
    result = run("add", pool, write_jsonl("new.jsonl", rows), *options)
    assert result.stdout.startswith(
        f"Documents added to {pool / 'live'}: 1; those that were there already: 0.\n"
    )
    assert "No engine learns into this pool now" in result.stdout
    assert "1 rows were skipped" in result.stdout
    with RetrievalPool.open(pool / "live") as live:
        ((segment,),) = (live.group_segments("users/1"),)
        assert segment.header.provenance == "external"
        ((_, key),) = segment.keyed_documents()
        assert key == entity_hash("user", 9)
    figures = json.loads(run("add", pool, write_jsonl("new.jsonl", rows), *options, "--json").stdout)
    # A short text counts as often as it is written.
    assert figures["documents"] == 1
    assert figures["tokens"] == 4
    result = run("drop", pool, "--group", "users/1", "--json")
    assert json.loads(result.stdout)["documents"] == 2 + 2 * 2
    assert isinstance(run("drop", pool, "--group", "users/1").exception, PoolError)


@pytest.mark.parametrize(
    ("row", "match"),
    [({"id": 1, "text": ""}, "There is no document with text to add"), ({"id": 1}, "has neither text")],
)
def test_what_cannot_be_added_is_refused(
    pool: Path, write_jsonl: Write, tokenizer: str, row: dict[str, object], match: str
) -> None:
    result = run("add", pool, write_jsonl("new.jsonl", [row]), "--tokenizer", tokenizer)
    assert isinstance(result.exception, PoolError)
    assert match in str(result.exception)
    assert not (pool / "live").exists()


def test_flush_without_an_engine_is_refused(pool: Path) -> None:
    result = run("flush", pool)
    assert isinstance(result.exception, PoolError)
    assert "No engine learns into" in str(result.exception)
