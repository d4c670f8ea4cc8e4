"""Tables, report and pictures, made from a recorded result."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vllm_dare.evaluation.bench_plots import write_plots
from vllm_dare.evaluation.bench_report import (
    COLUMNS,
    CPU_NOTE,
    SEEDED,
    UNSEEDED,
    failure_lines,
    markdown,
    tables,
)
from vllm_dare.evaluation.grid import stacked


def _spread(median: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {"median": median, "low": median if low is None else low, "high": median if high is None else high}


def _record(arm: str, temperature: float, concurrency: int, **figures: Any) -> dict[str, Any]:
    names = ("tokens_per_second", "documents_per_second", "document_seconds", "document_seconds_p99")
    drafts = ("drafted_per_step", "acceptance", "look_up_share", "look_up_microseconds")
    return {
        "arm": arm,
        "temperature": temperature,
        "concurrency": concurrency,
        "repeats": 3,
        "speed_up": None,
        **{name: _spread(2.0) for name in names},
        **dict.fromkeys(drafts),
        "tokens_per_step": _spread(1.0),
        "mean_tokens": _spread(200.0),
        "mean_tokens_error": _spread(4.0),
        "same_texts": None,
        "same_leading_tokens": None,
        "failed": _spread(0.0),
        "peak_bytes": 3 * 2**30,
        **figures,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    drafts = {
        "speed_up": _spread(3.25, 3.0, 3.5),
        "tokens_per_step": _spread(4.5),
        "drafted_per_step": _spread(9.0),
        "acceptance": _spread(0.42),
        "look_up_share": _spread(0.021),
        "look_up_microseconds": _spread(75.4),
        "same_texts": _spread(1.0),
        "same_leading_tokens": _spread(1.0),
    }
    return {
        "status": "complete",
        "settings": {
            "model": "models/tiny",
            "prompts": "p.jsonl",
            "limit": 64,
            "pool": None,
            "arms": ["none", "suffix", "strict", "strict@4"],
            "draft": 16,
            "temperatures": [0.0, 0.7],
            "concurrencies": [1, 4],
            "repeats": 3,
            "seed": None,
            "engine_args": {"enforce_eager": True},
        },
        "provenance": {
            "started_at": "2025-01-01T00:00:00+00:00",
            "versions": {"vllm-dare": "0.1.0", "vllm": "0.33.0", "arctic-inference": None},
            "commit": "abc",
            "machine": {"cpu": "Some CPU", "cores": 8, "memory_bytes": 2**34, "load_average": 0.1},
        },
        "failures": {"suffix": "arctic-inference is not installed."},
        "summary": [
            _record("none", 0.0, 1, speed_up=_spread(1.0)),
            _record("none", 0.0, 4, speed_up=_spread(1.0)),
            _record("strict", 0.0, 1, **drafts),
            _record("strict", 0.0, 4, **drafts),
        ],
        "engines": [{"repeat": 1, "arms": ["none"], "device": "NVIDIA H100"}],
    }


def test_a_row_says_what_was_measured(result: dict[str, Any]) -> None:
    line = next(line for line in markdown(result).splitlines() if line.startswith("| 1 | strict |"))
    assert line == (
        "| 1 | strict | 3.25x (3.00-3.50) | 2 | 2.00 | 2.00 / 2.00 | 4.50 | 9.00 | 42% | 2.1% | 75 | "
        "200.0 ± 4.0 | 100% | 100% | 3.00 |"
    )


def test_rows_come_by_concurrency_then_arm(result: dict[str, Any]) -> None:
    rows = [line.split(" | ")[:2] for line in markdown(result).splitlines() if line.startswith("| 1 |")]
    assert [row[1] for row in rows] == ["none", "strict"]


def test_the_report_says_what_is_missing_and_how_it_was_measured(result: dict[str, Any]) -> None:
    text = markdown(result, ["plots/speedup.png"])
    assert "## Greedy" in text
    assert "## Temperature 0.7" not in text, "it has no figures"
    assert "- suffix: arctic-inference is not installed." in text
    assert "![plots/speedup.png](plots/speedup.png)" in text
    assert "- `strict@4`: DARE, strict verification, always 4 draft tokens" in text
    assert "- vllm.LLM, enforce_eager: True" in text
    assert "NVIDIA H100; Some CPU, 8 cores, 16 GiB" in text
    assert "vllm-dare 0.1.0, vllm 0.33.0\n" in text
    assert "complete" not in text


def test_the_mends_are_named_on_cpu_alone(result: dict[str, Any]) -> None:
    assert CPU_NOTE not in markdown(result)
    result["engines"][0]["device"] = "cpu"
    assert CPU_NOTE in markdown(result)


def test_seeds_are_owned_up_to(result: dict[str, Any]) -> None:
    assert UNSEEDED in markdown(result)
    result["settings"]["seed"] = 0
    assert SEEDED in markdown(result)


def test_an_interrupted_run_says_so(result: dict[str, Any]) -> None:
    assert "**Not complete: interrupted.**" in markdown(result | {"status": "interrupted"})


def test_a_run_without_any_figures_can_be_reported(result: dict[str, Any], tmp_path: Path) -> None:
    empty = result | {"summary": [], "engines": []}
    assert tables(empty) == []
    assert write_plots(empty, tmp_path) == []
    assert "device: unknown" in markdown(empty)
    assert failure_lines(empty) == ["suffix: arctic-inference is not installed."]


@pytest.mark.parametrize("width", [80, 120, 140])
def test_a_terminal_gets_the_brief_columns_unbroken(result: dict[str, Any], width: int) -> None:
    (grid,) = tables(result)
    assert len(grid.headings) < len(COLUMNS)
    console = Console(width=width, file=StringIO())
    for table in stacked(grid, width):
        console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for part in ("│ strict ", "3.25x (3.00-3.50)", "2.00 / 2.00", "200.0 ± 4.0", "42%", "2.1%"):
        assert part in text


def test_pictures_are_written(result: dict[str, Any], tmp_path: Path) -> None:
    written = write_plots(result, tmp_path / "new")
    assert [path.name for path in written] == ["speedup.png", "tokens_per_step.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
