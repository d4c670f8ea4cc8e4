"""What a stretch of generation cost, from vLLM's own counters."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_dare.verification.meters import Meters

_TOKENS = "vllm:generation_tokens"
_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens"
_ACCEPTED_TOKENS = "vllm:spec_decode_num_accepted_tokens"
# vLLM observes one of these two for every step that gave a request new tokens
_STEP_HISTOGRAMS = ("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds")


@dataclass(frozen=True)
class Counters:
    """vLLM's counters at one moment, summed over the engine's replicas.

    Attributes:
        tokens: tokens generated.
        steps: times the target model ran for a request and gave it at least one token.
        draft_tokens: draft tokens verified.
        accepted_tokens: draft tokens kept.
    """

    tokens: int = 0
    steps: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @classmethod
    def read(cls, metrics: Iterable[Any]) -> "Counters":
        """Sum up what ``LLM.get_metrics()`` returns; a counter that is not there is 0."""
        totals: dict[str, int] = {}
        for metric in metrics:
            amount = metric.count if metric.name in _STEP_HISTOGRAMS else getattr(metric, "value", 0)
            totals[metric.name] = totals.get(metric.name, 0) + int(amount)
        return cls(
            tokens=totals.get(_TOKENS, 0),
            steps=sum(totals.get(name, 0) for name in _STEP_HISTOGRAMS),
            draft_tokens=totals.get(_DRAFT_TOKENS, 0),
            accepted_tokens=totals.get(_ACCEPTED_TOKENS, 0),
        )

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(
            self.tokens + other.tokens,
            self.steps + other.steps,
            self.draft_tokens + other.draft_tokens,
            self.accepted_tokens + other.accepted_tokens,
        )

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(
            self.tokens - other.tokens,
            self.steps - other.steps,
            self.draft_tokens - other.draft_tokens,
            self.accepted_tokens - other.accepted_tokens,
        )


@dataclass(frozen=True)
class Figures:
    """One stretch of generation.

    Attributes:
        rows: rows finished, failed ones included.
        failed: rows that ended as an error.
        completion_tokens: tokens of the finished rows.
        seconds: wall time, without the engine's start.
        counters: vLLM's counters over the stretch, rows that did not finish included.
        relaxed: what relaxing did in the finished rows; None if none had a relaxed rule.
    """

    rows: int = 0
    failed: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    counters: Counters = Counters()
    relaxed: Meters | None = None

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "Figures":
        """What output rows say, without time and counters."""
        num_rows = failed = tokens = 0
        relaxed: Meters | None = None
        for row in rows:
            num_rows += 1
            failed += row["finish_reason"] == "error"
            tokens += row["completion_tokens"]
            if "verification" in row:
                relaxed = relaxed or Meters()
                relaxed.add_meters(row["verification"])
        return cls(num_rows, failed, tokens, relaxed=relaxed)

    def __add__(self, other: "Figures") -> "Figures":
        """Two stretches at the same time; ``seconds`` is that of the longer one."""
        known = [meters for meters in (self.relaxed, other.relaxed) if meters is not None]
        relaxed = Meters() if known else None
        if relaxed is not None:
            for meters in known:
                relaxed.add_meters(meters.as_dict())
        return Figures(
            self.rows + other.rows,
            self.failed + other.failed,
            self.completion_tokens + other.completion_tokens,
            max(self.seconds, other.seconds),
            self.counters + other.counters,
            relaxed,
        )

    @property
    def mean_tokens(self) -> float | None:
        return _ratio(self.completion_tokens, self.rows - self.failed)

    @property
    def documents_per_second(self) -> float | None:
        return _ratio(self.rows - self.failed, self.seconds)

    @property
    def tokens_per_second(self) -> float | None:
        return _ratio(self.counters.tokens, self.seconds)

    @property
    def tokens_per_step(self) -> float | None:
        """Output tokens for each run of the target model; 1 without drafts."""
        return _ratio(self.counters.tokens, self.counters.steps)

    @property
    def acceptance_rate(self) -> float | None:
        """The share of draft tokens that were kept; None without drafts."""
        return _ratio(self.counters.accepted_tokens, self.counters.draft_tokens)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "failed": self.failed,
            "completion_tokens": self.completion_tokens,
            "mean_tokens": self.mean_tokens,
            "seconds": self.seconds,
            "documents_per_second": self.documents_per_second,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_step": self.tokens_per_step,
            "draft_tokens": self.counters.draft_tokens,
            "accepted_tokens": self.counters.accepted_tokens,
            "acceptance_rate": self.acceptance_rate,
            "verification": None if self.relaxed is None else self.relaxed.as_dict(),
        }


class Meter:
    """Counts rows and reads vLLM's counters from the moment it is made.

    Args:
        llm: anything with vLLM's ``get_metrics()``.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._started_at = time.monotonic()
        self._before = Counters.read(llm.get_metrics())
        self._rows = Figures()

    def count(self, row: dict[str, Any]) -> None:
        """Note one output row."""
        self._rows += Figures.of_rows([row])

    def figures(self) -> Figures:
        """What has been done until now."""
        counters = Counters.read(self._llm.get_metrics()) - self._before
        return replace(self._rows, seconds=time.monotonic() - self._started_at, counters=counters)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
