"""From the rows of a cell to its figures, and from the repeats of a cell to median and spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_dare.evaluation.bench_arms import BASELINE
from vllm_dare.generation.compare import Rows, agreement
from vllm_dare.generation.meter import Figures


@dataclass(frozen=True)
class Cell:
    """What was measured: an arm, at a temperature, with so many requests in flight, for the n-th time."""

    arm: str
    temperature: float
    concurrency: int
    repeat: int


@dataclass(frozen=True)
class Measurement:
    """The figures of one cell; None where there is nothing to divide by.

    Attributes:
        arm, temperature, concurrency, repeat: see `Cell`.
        rows, failed: documents finished, and those that ended as an error.
        seconds: wall time from the first request to the last token.
        tokens_per_second, documents_per_second: output, over the wall time.
        document_seconds, document_seconds_p99: from a request's being sent to its text's being whole,
            median and 99th percentile.
        tokens_per_step: output tokens for each run of the target model for a request; 1 without drafts.
        drafted_per_step: draft tokens for the same.
        acceptance: the share of draft tokens that were kept.
        look_up_share: the share of the worker's step time that drafting took.
        look_up_microseconds: drafting, for a request and step.
        mean_tokens, mean_tokens_error: a document's length, and the standard error of that mean.
        same_texts: the share of texts that are those of the arm ``none``.
        same_leading_tokens: the share of tokens before the first difference to them.
    """

    arm: str
    temperature: float
    concurrency: int
    repeat: int
    rows: int
    failed: int
    seconds: float
    tokens_per_second: float | None
    documents_per_second: float | None
    document_seconds: float
    document_seconds_p99: float
    tokens_per_step: float | None
    drafted_per_step: float | None
    acceptance: float | None
    look_up_share: float | None
    look_up_microseconds: float | None
    mean_tokens: float | None
    mean_tokens_error: float | None
    same_texts: float | None = None
    same_leading_tokens: float | None = None


# Attributes of a Measurement that are summarised over repeats.
_SUMMARISED = (
    "tokens_per_second",
    "documents_per_second",
    "document_seconds",
    "document_seconds_p99",
    "tokens_per_step",
    "drafted_per_step",
    "acceptance",
    "look_up_share",
    "look_up_microseconds",
    "mean_tokens",
    "mean_tokens_error",
    "same_texts",
    "same_leading_tokens",
    "failed",
)


def measurement(
    cell: Cell, figures: Figures, rows: Rows, seconds: Sequence[float], times: Mapping[str, float]
) -> Measurement:
    """The figures of one cell.

    Args:
        cell: which one.
        figures: of all its rows, from vLLM's counters.
        rows: its output rows, with token ids.
        seconds: how long each of ``rows`` took.
        times: what `BenchWorker.bench_times` returns.
    """
    whole = [i for i, row in enumerate(rows) if row["finish_reason"] != "error"] or range(len(rows))
    row_seconds = np.array(seconds)[list(whole)]
    lengths = [len(row["token_ids"]) for row in rows if row["finish_reason"] != "error"]
    steps = figures.counters.steps
    look_up = times["look_up_seconds"]
    return Measurement(
        arm=cell.arm,
        temperature=cell.temperature,
        concurrency=cell.concurrency,
        repeat=cell.repeat,
        rows=figures.rows,
        failed=figures.failed,
        seconds=figures.seconds,
        tokens_per_second=figures.tokens_per_second,
        documents_per_second=figures.documents_per_second,
        document_seconds=float(np.median(row_seconds)),
        document_seconds_p99=float(np.percentile(row_seconds, 99)),
        tokens_per_step=figures.tokens_per_step,
        drafted_per_step=figures.counters.draft_tokens / steps if steps else None,
        acceptance=figures.acceptance_rate,
        look_up_share=look_up / times["step_seconds"]
        if times["look_ups"] and times["step_seconds"]
        else None,
        look_up_microseconds=look_up / steps * 1e6 if times["look_ups"] and steps else None,
        mean_tokens=figures.mean_tokens,
        mean_tokens_error=_standard_error(lengths),
    )


def compared(found: Measurement, texts: Rows, baseline: Rows) -> Measurement:
    """The measurement with its agreement with the baseline's texts of the same cell."""
    alike = agreement(baseline, texts)
    changes = {"same_texts": alike.same_texts, "same_leading_tokens": alike.same_leading_tokens}
    return Measurement(**{**vars(found), **changes}) if alike.rows else found


def summarise(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One record for each arm, temperature and concurrency, in the order in which they first occur.

    Figures are ``{"median": …, "low": …, "high": …}`` over the repeats, None where no repeat has one.
    ``speed_up`` is the ratio of output tokens a second to those of the baseline in the same repeat.
    """
    cells: dict[tuple[str, float, int], list[Measurement]] = {}
    for found in measurements:
        cells.setdefault((found.arm, found.temperature, found.concurrency), []).append(found)
    return [
        {
            "arm": arm,
            "temperature": temperature,
            "concurrency": concurrency,
            "repeats": len(repeats),
            "speed_up": spread(_speed_ups(repeats, cells.get((BASELINE, temperature, concurrency), []))),
            **{name: spread([getattr(found, name) for found in repeats]) for name in _SUMMARISED},
        }
        for (arm, temperature, concurrency), repeats in cells.items()
    ]


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median, least and greatest of the values that there are; None if there are none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return {"median": float(np.median(there)), "low": float(min(there)), "high": float(max(there))}


def _speed_ups(repeats: Sequence[Measurement], baseline: Sequence[Measurement]) -> list[float | None]:
    """Repeat by repeat: what slows the machine down for minutes then slows both sides."""
    base = {found.repeat: found.tokens_per_second for found in baseline}
    pairs = [(found.tokens_per_second, base.get(found.repeat)) for found in repeats]
    return [fast / plain if fast and plain else None for fast, plain in pairs]


def _standard_error(lengths: Sequence[int]) -> float | None:
    if len(lengths) < 2:
        return None
    return float(np.std(lengths, ddof=1) / np.sqrt(len(lengths)))
