"""Knowledge files: whatever `generate` writes, and one sentence for what it does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_dare.errors import DareError
from vllm_dare.evaluation.knowledge import parse_variants, read_knowledge


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_variants_come_in_the_baselines_order(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "a", "completion_tokens": 3, "finish_reason": "stop"},
        {"id": "2", "text": "b", "token_ids": [5, 6], "finish_reason": "length"},
    ]
    other = [{"id": "2", "text": "d", "token_ids": [1]}, {"id": "1", "text": "c", "token_ids": []}]
    pq.write_table(pa.Table.from_pylist(other), tmp_path / "other.parquet")
    found = read_knowledge({"base": _write(tmp_path / "a.jsonl", rows), "other": tmp_path / "other.parquet"})
    assert found.ids == ["1", "2"]
    base, variant = found.variants
    assert (base.name, base.texts, variant.texts) == ("base", ["a", "b"], ["c", "d"])
    assert base.lengths.tolist() == [3, 2] and base.unfinished.tolist() == [0, 1]
    assert base.token_ids is None and variant.token_ids == [[], [1]]
    assert np.isnan(variant.unfinished).all()


def test_who_failed_in_one_variant_is_left_out_of_all(tmp_path: Path) -> None:
    good = [{"id": i, "text": "a"} for i in range(4)]
    bad = [*good[:3], {"id": 3, "text": "", "finish_reason": "error", "error": "too long"}]
    worse = [{"id": 0, "finish_reason": "error"}, *good[1:]]
    files = {name: _write(tmp_path / name, rows) for name, rows in [("a.jsonl", good), ("b.jsonl", bad)]}
    files["c.jsonl"] = _write(tmp_path / "c.jsonl", worse)
    found = read_knowledge(files)
    assert found.ids == ["1", "2"]
    assert (found.failed, found.left_out) == ({"a.jsonl": 0, "b.jsonl": 1, "c.jsonl": 1}, 2)


ROW = {"id": 1, "text": "a"}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([ROW, ROW], "repeats the id 1"),
        ([], "has no rows"),
        ([{"id": 1}], "has no text"),
        ([{"text": "a"}], "has no id"),
        ([{"id": True, "text": "a"}], "has no id"),
        ([{"id": 1, "finish_reason": "error"}], "No document is left"),
        (
            [{"id": i, "text": "a"} for i in (2, 3, 4, 5)],
            r"1 of .*base.jsonl are not in .*other.jsonl \(1\) and 4 of .*other.jsonl .*\(2, 3, 4, ...\)",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    tmp_path: Path, rows: list[dict[str, Any]], sentence: str
) -> None:
    base = _write(tmp_path / "base.jsonl", [ROW])
    with pytest.raises(DareError, match=sentence) as error:
        read_knowledge({"base": base, "other": _write(tmp_path / "other.jsonl", rows)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a=b"], "at least two"),
        (["a=b", "a=c"], "stands for two files"),
        (["a=b", "c"], "NAME=FILE"),
        (["a=b", "=c"], "NAME=FILE"),
    ],
)
def test_arguments_are_named_files(arguments: list[str], sentence: str) -> None:
    with pytest.raises(DareError, match=sentence):
        parse_variants(arguments)
    assert parse_variants(["a=b", "c=d=e"]) == {"a": Path("b"), "c": Path("d=e")}
