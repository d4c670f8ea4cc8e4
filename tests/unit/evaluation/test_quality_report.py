"""Tables of an evaluation on terminals of any width, and the figures in them."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from vllm_dare.evaluation.grid import stacked
from vllm_dare.evaluation.quality_report import about_lines, interval, tables, verdict_lines


def _figure(value: float, difference: float | None = None) -> dict[str, Any]:
    found = {"value": value, "low": value - 0.01, "high": value + 0.01, "width": 0.02, "count": 300}
    other = None if difference is None else _figure(difference)
    return found | {"difference": other}


def _variant(name: str, first: bool) -> dict[str, Any]:
    difference = None if first else -0.0123
    agreement = {"agreement": _figure(0.91), "kappa": None}
    return {
        "name": name,
        "text": {"length": _figure(201.5, difference), "unfinished": _figure(0.2, difference)},
        "content": {"precision": _figure(0.7, difference)},
        "attributes": []
        if first
        else [{"value": "Sci-Fi", "baseline_stated": 0.5, "stated": 0.4, **agreement}],
        "ranking": {"auc": _figure(0.75, difference), "log_loss": _figure(0.6, difference)},
        "verdict": None if first else {"word": "worse", "sentence": "AUC is lower"},
    }


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "documents": 300,
        "left_out": 2,
        "failed": {"plain": 0, "relaxed": 2},
        "length_unit": "tokens",
        "embedding": "TF-IDF",
        "interactions": {"users": 290, "rows": 47000},
        "variants": [_variant("plain", True), _variant("relaxed", False)],
    }


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_figure_is_there_and_whole(result: dict[str, Any], width: int) -> None:
    console = Console(width=width, file=StringIO())
    for grid in tables(result):
        for table in stacked(grid, width):
            console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for part in (
        "201.5 (201.5 to 201.5)",
        "-1.2% (-2.2% to -0.2%)",
        "-0.0123 (-0.0223 to -0.0023)",
        "91.0% (90.0% to 92.0%)",
        "50% / 40%",
    ):
        assert part in text


def test_lines_say_what_it_is_about(result: dict[str, Any]) -> None:
    assert about_lines(result) == [
        "300 documents in 2 variants, 47,000 interactions of 290 users; embedding: TF-IDF.",
        "2 documents were left out, since they failed (2 in relaxed).",
    ]
    assert verdict_lines(result) == ["relaxed: worse (AUC is lower)."]


def test_an_interval_has_its_sign_where_it_is_a_difference() -> None:
    assert interval(None, "{:.1f}") == "-"
    assert interval(_figure(0.5), "{:.2f}", signed=True) == "+0.50 (+0.49 to +0.51)"
