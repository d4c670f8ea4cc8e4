import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import Assignment, entity_hash
from vllm_dare.pool.build import BuildReport, build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.rows import BadRows
from vllm_dare.pool.segment import Segment

MakePool = Callable[..., tuple[Path, BuildReport]]

ROWS = [
    ("u1", "a likes films .", "users/1"),
    ("u2", "b likes films about space .", "users/1"),
    ("u3", "c likes war .", "users/2"),
    ("i1", "about space .", "items/1"),
    ("x", "about war .", None),
]


def texts(segments: tuple[Segment, ...]) -> list[list[int]]:
    return [document.tolist() for segment in segments for document in segment.documents()]


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_each_group_has_its_documents_and_the_global_segment_has_all(make_pool: MakePool) -> None:
    output, report = make_pool("pool", ROWS)
    assert (report.num_documents, report.num_duplicates, report.num_empty) == (5, 0, 0)
    with RetrievalPool.open(output) as pool:
        pool.verify()
        assert sorted(pool.groups) == ["items/1", "users/1", "users/2"]
        assert texts(pool.group_segments("users/1")) == [[1, 4, 5, 9], [2, 4, 5, 6, 7, 9]]
        assert texts(pool.group_segments("users/2")) == [[3, 4, 8, 9]]
        assert len(texts(pool.global_segments())) == 5


def test_groups_are_assigned_from_documents_and_explicit_assignments_win(make_pool: MakePool) -> None:
    output, _ = make_pool(
        "pool",
        [*ROWS, ("y", "a", "other")],
        assignments=[("user", "u1", "users/2"), ("user", "new", "users/9")],
    )
    with RetrievalPool.open(output) as pool:
        assert pool.group_of("user", "u1") == "users/2"
        assert pool.group_of("user", "u2") == "users/1"
        assert pool.group_of("item", "u2") is None
        assert pool.group_of("item", "i1") == "items/1"
        assert pool.group_of("user", "y") == pool.group_of("item", "y") == "other"
        assert pool.group_of("user", "x") is None
        assert pool.group_of("user", "new") == "users/9"
        assert pool.group_segments("users/9") == ()


def test_a_document_that_names_no_group_goes_where_its_id_belongs(make_pool: MakePool) -> None:
    output, report = make_pool(
        "pool",
        [
            ("u1", "a", None),
            ("i1", "b", None),
            ("both", "c", None),
            ("same", "a b", None),
            ("u2", "b c", "users/1"),
        ],
        assignments=[
            ("user", "u1", "users/7"),
            ("item", "i1", "films"),
            ("user", "both", "users/7"),
            ("item", "both", "films"),
            ("user", "same", "all"),
            ("item", "same", "all"),
            ("user", "u2", "users/7"),
        ],
    )
    assert report.num_ambiguous == 1
    with RetrievalPool.open(output) as pool:
        groups = {group: texts(pool.group_segments(group)) for group in pool.groups}
        assert groups == {"users/7": [[1]], "films": [[2]], "all": [[1, 2]], "users/1": [[2, 3]]}
        assert len(texts(pool.global_segments())) == 5
        assert pool.group_of("user", "i1") is None  # nobody said so
        assert pool.group_of("user", "u2") == "users/7"


def test_of_documents_with_one_id_the_last_one_counts(make_pool: MakePool) -> None:
    output, report = make_pool(
        "pool", [("u1", "a", "users/1"), ("u1", "b", "users/2"), ("u1", "c", "items/1")]
    )
    assert report.num_duplicates == 1
    with RetrievalPool.open(output) as pool:
        assert sorted(pool.groups) == ["items/1", "users/2"]  # an item may have a user's id
        assert pool.group_of("user", "u1") == "users/2"
        assert pool.group_of("item", "u1") == "items/1"


def keys_by_text(directory: Path) -> dict[tuple[int, ...], int]:
    with RetrievalPool.open(directory) as pool:
        (segment,) = pool.global_segments()
        return {tuple(document.tokens.tolist()): document.key for document in segment.keyed_documents()}


def test_a_document_is_known_by_the_user_or_item_that_it_names(tokenizer: str, tmp_path: Path) -> None:
    documents = [
        Document("u19", text="a", user="19"),
        Document("more of 19", text="a b", group="users/1", user="19"),
        Document("19", text="b", group="users/1"),
        Document("i5", text="c", group="users/1", item="5"),
        Document("u19", text="b c", user="20"),
    ]
    report = build_pool(documents, tokenizer, tmp_path / "pool")
    assert report.num_duplicates == 0
    user = entity_hash("user", "19")
    assert keys_by_text(tmp_path / "pool") == {
        (1,): user,
        (1, 2): user,
        (2,): user,
        (3,): entity_hash("item", "5"),
        (2, 3): entity_hash("user", "20"),
    }
    with RetrievalPool.open(tmp_path / "pool") as pool:
        assert pool.group_of("user", "19") == pool.group_of("item", "5") == "users/1"
        assert pool.group_of("user", "5") is pool.group_of("user", "i5") is None
        assert pool.group_of("user", "more of 19") is None


def test_of_documents_about_one_user_and_with_one_id_the_last_one_counts(
    tokenizer: str, tmp_path: Path
) -> None:
    documents = [Document("u19", text=text, user="19") for text in ("a", "b")]
    assert build_pool(documents, tokenizer, tmp_path / "pool").num_duplicates == 1
    assert keys_by_text(tmp_path / "pool") == {(2,): entity_hash("user", "19")}


def test_a_group_is_looked_up_by_user_or_item_and_then_by_id(tokenizer: str, tmp_path: Path) -> None:
    documents = [
        Document("1", text="a", user="19"),
        Document("19", text="b", item="5"),
        Document("u7", text="c", user="7"),
        Document("5", text="a b", user="8"),  # the item's id is not the user's
    ]
    assignments: list[Assignment] = [
        ("user", "19", "users/1"),
        ("user", "1", "users/2"),
        ("item", "5", "items/1"),
        ("user", "u7", "users/3"),
    ]
    report = build_pool(documents, tokenizer, tmp_path / "pool", assignments=assignments)
    assert (report.num_ambiguous, report.mismatch) == (0, None)
    with RetrievalPool.open(tmp_path / "pool") as pool:
        groups = {group: texts(pool.group_segments(group)) for group in pool.groups}
    assert groups == {"users/1": [[1]], "items/1": [[2]], "users/3": [[3]]}


STRANGERS = [("u1", "a", None), ("u2", "b", None), ("u2", "c", None)]


@pytest.mark.parametrize(
    ("assignments", "which"),
    [([("user", "1", "users/1"), ("item", "2", "g")], r"such as user '1'"), ([], "are empty")],
)
def test_assignments_that_know_no_document_are_refused(
    make_pool: MakePool, tmp_path: Path, assignments: list[Assignment], which: str
) -> None:
    with pytest.raises(
        PoolError,
        match=rf"^None of the 2 documents without a group is in the assignments \(documents are such as "
        rf"'u1', assignments {which}\): check that both use the same ids\.$",
    ):
        make_pool("pool", STRANGERS, assignments=assignments)
    assert files(tmp_path) == set()


def test_assignments_that_know_no_document_are_told_of_where_groups_are_named(
    make_pool: MakePool, tokenizer: str, tmp_path: Path
) -> None:
    assignments: list[Assignment] = [("user", "1", "users/1")]
    _, report = make_pool("one", [*STRANGERS, ("u3", "c", "users/1")], assignments=assignments)
    assert report.mismatch is not None and report.mismatch.startswith("None of the 2 documents")
    documents = [Document("x", text="a", user="19"), Document("y", text="b", group="g")]
    report = build_pool(documents, tokenizer, tmp_path / "two", assignments=assignments)
    assert "documents are such as user '19'" in str(report.mismatch)


@pytest.mark.parametrize(
    "rows", [[("1", "a", None), ("x", "b", None)], [("x", "a", "users/1")], [("both", "a", None)]]
)
def test_assignments_that_know_one_or_are_not_needed_are_not_told_of(
    make_pool: MakePool, rows: list[tuple[str, str, str | None]]
) -> None:
    assignments = [("user", "1", "users/1"), ("user", "both", "users/1"), ("item", "both", "items/1")]
    assert make_pool("pool", rows, assignments=assignments)[1].mismatch is None


def test_documents_without_text_are_left_out_and_counted(make_pool: MakePool) -> None:
    _, report = make_pool("pool", [("u1", "a", None), ("u2", "", None), ("u3", "   ", None)])
    assert (report.num_documents, report.num_empty) == (1, 2)


def test_a_corpus_without_any_text_is_refused(make_pool: MakePool, tmp_path: Path) -> None:
    for rows in ([], [("u1", "", None)]):
        with pytest.raises(PoolError, match=r"no document with text"):
            make_pool("pool", rows)
    assert files(tmp_path) == set()


def test_token_ids_are_taken_as_they_are(tokenizer: str, tmp_path: Path) -> None:
    documents = [Document(str(i), token_ids=np.array([i, 9], np.int32)) for i in range(3)]
    documents.insert(1, Document("t", text="a b"))
    build_pool(documents, tokenizer, tmp_path / "pool")
    with RetrievalPool.open(tmp_path / "pool") as pool:
        assert texts(pool.global_segments()) == [[0, 9], [1, 2], [1, 9], [2, 9]]


def test_a_token_id_beyond_the_vocabulary_is_refused_or_skipped(tokenizer: str, tmp_path: Path) -> None:
    documents = [Document("1", text="a"), Document("2", token_ids=np.array([10], np.int32), source="f:2")]
    with pytest.raises(
        PoolError, match=r"f:2 has the token id 10, beyond the vocabulary of words \(10 tokens\)"
    ):
        build_pool(documents, tokenizer, tmp_path / "pool")
    bad_rows = BadRows(skip=True)
    build_pool(documents, tokenizer, tmp_path / "pool", bad_rows=bad_rows)
    assert bad_rows.num_skipped == 1


def test_without_a_global_segment_each_document_needs_a_group(make_pool: MakePool) -> None:
    with pytest.raises(PoolError, match=r"has no group"):
        make_pool("pool", ROWS, global_segment=False)
    output, _ = make_pool("pool", ROWS[:-1], global_segment=False)
    with RetrievalPool.open(output) as pool:
        assert pool.global_segments() == ()
        assert len(texts(pool.group_segments("users/1"))) == 2


def test_a_document_is_as_new_as_the_last_text_of_its_id(make_pool: MakePool) -> None:
    output, _ = make_pool("pool", [("1", "a", None), ("2", "b", None), ("1", "c", None)])
    with RetrievalPool.open(output) as pool:
        assert texts(pool.global_segments()) == [[2], [3]]
        keys = pool.global_segments()[0].document_keys.tolist()
    assert keys == [entity_hash("document", "2"), entity_hash("document", "1")]


def test_groups_above_the_bound_are_split_between_documents(make_pool: MakePool) -> None:
    rows = [(str(i), "a b c", "users/1") for i in range(10)]
    output, report = make_pool("pool", rows, max_segment_tokens=6)
    with RetrievalPool.open(output) as pool:
        pool.verify()
        assert [s.header.num_documents for s in pool.group_segments("users/1")] == [2] * 5
        assert len(texts(pool.global_segments())) == 10
    assert len(report.manifest.segments) == 5  # the group's parts are the global ones, too


def test_a_document_longer_than_the_bound_stays_whole(make_pool: MakePool) -> None:
    output, _ = make_pool("pool", [("1", "a a a a", None), ("2", "b", None)], max_segment_tokens=2)
    with RetrievalPool.open(output) as pool:
        assert [s.header.num_tokens for s in pool.global_segments()] == [4, 1]


def test_two_builds_give_the_same_files(make_pool: MakePool) -> None:
    first, report = make_pool("first", ROWS, workers=1)
    second, again = make_pool("second", ROWS, workers=4)
    assert files(first) == files(second)
    for name in files(first) - {"manifest.json", "segments"}:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    unordered = {"created_at": None}
    assert report.manifest.model_copy(update=unordered) == again.manifest.model_copy(update=unordered)


def test_the_tokenizer_is_remembered_without_its_path(make_pool: MakePool, tmp_path: Path) -> None:
    output, _ = make_pool("pool", ROWS)
    with RetrievalPool.open(output) as pool:
        assert pool.tokenizer.name == "words"
    for path in output.rglob("*"):
        assert path.is_dir() or b"/words" not in path.read_bytes()


def test_progress_ends_with_everything_done(make_pool: MakePool) -> None:
    read: list[int] = []
    sorted_tokens: list[tuple[int, int]] = []
    _, report = make_pool(
        "pool",
        ROWS,
        read_progress=read.append,
        sort_progress=lambda done, total: sorted_tokens.append((done, total)),
    )
    num_tokens = sum(info.num_tokens for info in report.manifest.segments.values())
    assert read == [5]
    assert sorted_tokens[-1] == (num_tokens, num_tokens)


def test_an_existing_output_is_refused_before_anything_is_read(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()

    def never() -> Iterator[Document]:
        raise AssertionError("documents were read")
        yield

    with pytest.raises(PoolError, match=r"exists already; choose another output .*--overwrite"):
        build_pool(never(), "no tokenizer", tmp_path / "pool")


def test_overwriting_replaces_a_pool_and_its_files(make_pool: MakePool) -> None:
    output, _ = make_pool("pool", ROWS)
    (output / "README.md").write_text("ours")
    before = files(output)
    make_pool("pool", ROWS[:1], overwrite=True)
    with RetrievalPool.open(output) as pool:
        pool.verify()
        assert list(pool.groups) == ["users/1"]
    after = files(output)
    assert "README.md" in after
    assert len(after) < len(before)
    fresh, _ = make_pool("fresh", ROWS[:1])
    assert after - {"README.md"} == files(fresh)


def test_an_empty_directory_may_be_overwritten_and_anything_else_may_not(
    make_pool: MakePool, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    output, _ = make_pool("empty", ROWS, overwrite=True)
    RetrievalPool.open(output).verify()

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious.safetensors").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with pytest.raises(PoolError, match=r"exists and is not a pool"):
            make_pool(name, ROWS, overwrite=True)
    assert (tmp_path / "home" / "precious.safetensors").exists()


def test_a_reader_keeps_the_pool_it_opened(make_pool: MakePool) -> None:
    output, _ = make_pool("pool", ROWS)
    old = RetrievalPool.open(output)  # nothing is mapped yet
    make_pool("pool", ROWS[2:3], overwrite=True)
    assert len(texts(old.group_segments("users/1"))) == 2
    old.verify()
    old.close()
    make_pool("pool", ROWS[3:4], overwrite=True)
    fresh, _ = make_pool("fresh", ROWS[3:4])
    assert files(output) == files(fresh)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_build_leaves_everything_as_it_was(
    make_pool: MakePool, tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    if exists:
        make_pool("pool", ROWS)
    before = files(tmp_path)

    def fail(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        make_pool("pool", ROWS[1:], overwrite=True, sort_progress=fail)
    assert files(tmp_path) == before
    if exists:
        RetrievalPool.open(tmp_path / "pool").verify()


def test_a_full_disk_is_one_sentence(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vllm_dare.pool.files.os.fsync", full_disk)
    with pytest.raises(PoolError, match=r"Cannot write the pool .*pool \(No space left on device\)"):
        make_pool("pool", ROWS)
    assert files(tmp_path) == set()


KILLED_BUILD = """
import sys, time
from pathlib import Path
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document

def wait(done, total):
    print("sorting", flush=True)
    for _ in range(600):  # a signal just before a sleep does not end it
        time.sleep(0.1)

documents = [Document(str(i), text="b c", group=f"users/{i}") for i in range(3)]
build_pool(documents, sys.argv[1], Path(sys.argv[2]), overwrite=True, sort_progress=wait)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("exists", [True, False])
def test_a_killed_build_leaves_the_old_pool_or_none(
    make_pool: MakePool, tokenizer: str, tmp_path: Path, kill: signal.Signals, exists: bool
) -> None:
    output = tmp_path / "pool"
    if exists:
        make_pool("pool", ROWS)
    before = files(tmp_path)
    command = [sys.executable, "-c", KILLED_BUILD, tokenizer, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sorting\n"
        os.kill(process.pid, kill)
        process.wait(timeout=30)
    if exists:
        with RetrievalPool.open(output) as pool:
            pool.verify()
            assert len(texts(pool.global_segments())) == 5
    else:
        assert not output.exists()
    if kill == signal.SIGINT:
        assert files(tmp_path) == before
    make_pool("pool", ROWS[:1], overwrite=True)  # what the killed one left is in nobody's way
    fresh, _ = make_pool("fresh", ROWS[:1])
    assert files(output) == files(fresh)


def test_a_pool_takes_less_than_nine_bytes_a_token(tokenizer: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    documents = [Document(str(i), token_ids=generator.integers(0, 10, 1000, np.int32)) for i in range(300)]
    report = build_pool(documents, tokenizer, tmp_path / "pool")
    (info,) = report.manifest.segments.values()
    assert info.num_bytes / info.num_tokens < 9
