"""Embeddings that there are already: files, zeros, and who they belong to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_dare.errors import DareError
from vllm_dare.routing.given_embeddings import UserVectors, align_embeddings, read_embeddings
from vllm_dare.routing.interactions import Positives


def save(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def test_rows_of_an_array_are_ids_and_zeros_are_nobody(tmp_path: Path) -> None:
    vectors = np.array([[0, 0], [3, 4], [1e-33, -1e-33], [0, -2]], np.float32)
    found = read_embeddings(save(tmp_path / "e.npy", vectors))
    assert list(found.ids) == ["1", "3"]
    np.testing.assert_allclose(found.vectors, [[0.6, 0.8], [0, -1]], rtol=1e-6)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.int32())]
)
def test_parquet_of_lists(tmp_path: Path, kind: Any) -> None:
    table = pa.table({"embedding": pa.array([[3, 4], [0, 0], [0, 1]], kind), "userID": ["b", "c", "a"]})
    pq.write_table(table, tmp_path / "e.parquet")
    found = read_embeddings(tmp_path / "e.parquet")
    assert list(found.ids) == ["b", "a"]
    np.testing.assert_allclose(found.vectors, [[0.6, 0.8], [0, 1]], rtol=1e-6)


def test_users_of_both_tables_are_put_together(make_positives: Callable[..., Positives]) -> None:
    positives = make_positives(num_users=4, num_items=3, tastes=2)
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    ids, found = align_embeddings(Path("e.npy"), UserVectors(["2", "99", "0"], vectors), positives)
    assert ids == ["0", "1", "2", "3", "99"]
    expected = {"2": vectors[0], "99": vectors[1], "0": vectors[2]}
    for place, user in enumerate(ids):
        np.testing.assert_array_equal(found.users[place], expected.get(user, np.zeros(2)))
    for item in range(positives.num_items):
        fans = [positives.user_ids[u] for u in positives.users[positives.items == item]]
        known = [expected[fan] for fan in fans if fan in expected]
        mean = np.mean(known, axis=0) if known else np.zeros(2)
        np.testing.assert_allclose(found.items[item], mean, rtol=1e-6)
    with pytest.raises(DareError, match=r"No user of e.npy \(such as 7\) has positive interactions"):
        align_embeddings(Path("e.npy"), UserVectors(["7"], vectors[:1]), positives)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3, np.float32), r"e.npy is float32\[3\]; give float32\[users, dimensions\]"),
        (np.ones((2, 2, 2)), r"e.npy is float64\[2, 2, 2\]"),
        (np.ones((3, 0)), r"e.npy is float64\[3, 0\]"),
        (np.array([["a"]]), r"e.npy is <U1\[1, 1\]"),
        (np.zeros((3, 2)), "All embeddings of .* are zero"),
        (np.array([[1, 2], [np.nan, 1], [1, 1]]), r"Row 1 of .*e.npy \(user 1\) has an .* not finite"),
        (np.array([[1, 2], [1, 1], [np.inf, 1]]), r"Row 2 of .*e.npy \(user 2\) has an .* not finite"),
        (np.array([[1, 2], [1e300, 1]]), r"Row 1 of .*e.npy \(user 1\) has an .* not finite"),
        (np.array([[{}]], object), "Cannot read .*e.npy"),
    ],
)
def test_bad_arrays(tmp_path: Path, array: Any, message: str) -> None:
    with pytest.raises(DareError, match=message):
        read_embeddings(save(tmp_path / "e.npy", array))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1, 2, 1], "embedding": [[1.0], [1.0], [2.0]]}, r"e.parquet:3 is a second .* of user 1"),
        ({"user": [1, 2], "embedding": [[1.0], [1.0, 2.0]]}, r"e.parquet:1 has an embedding of 1 numbers"),
        ({"user": [1, 2], "embedding": [[1.0], None]}, r"e.parquet:2 has an embedding of 0 numbers"),
        ({"user": [1, 2], "embedding": [[1.0], [None]]}, r"e.parquet:2 \(user 2\) has an .* not finite"),
        ({"user": [1, 2], "embedding": ["a", "b"]}, "column 'embedding' of .* holds string; give lists"),
        ({"user": [1, 2], "embedding": [["a"], ["b"]]}, "column 'embedding' of .* holds list"),
        ({"user": [1, 2]}, "say with a column called embedding"),
        ({"user": pa.array([], pa.int64()), "embedding": pa.array([], pa.list_(pa.float32()))}, "are zero"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(DareError, match=message):
        read_embeddings(tmp_path / "e.parquet")


def test_files_that_are_no_embeddings(tmp_path: Path) -> None:
    with pytest.raises(DareError, match=r"There is no file .*e.npy"):
        read_embeddings(tmp_path / "e.npy")
    with pytest.raises(DareError, match=r"embeddings are a .npy or .parquet file"):
        read_embeddings(tmp_path / "e.csv")
    (tmp_path / "e.npy").write_bytes(b"")
    with pytest.raises(DareError, match=r"Cannot read .*e.npy"):
        read_embeddings(tmp_path / "e.npy")
    np.savez(tmp_path / "e.npz", a=np.ones((2, 2)))
    (tmp_path / "e.npz").rename(tmp_path / "f.npy")
    with pytest.raises(DareError, match="is an archive of arrays"):
        read_embeddings(tmp_path / "f.npy")
