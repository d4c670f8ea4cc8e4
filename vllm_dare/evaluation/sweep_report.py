"""Which setting to take: speed beside quality, and the fastest within the limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_dare.evaluation.grid import Grid, markdown_table
from vllm_dare.evaluation.quality_report import interval

Record = Mapping[str, Any]

_MISSING = "-"
METHOD = (
    "Every setting generated the same prompts, in an engine without drafts or, one after the other, in one "
    "with them; engine start and a short warm-up are not counted, and the prefix cache was emptied before "
    "each. *Speed-up* is output tokens a second as a multiple of the baseline's, so that shorter texts do "
    "not look like speed. Each setting was timed once: small differences of speed may be the machine's."
)


def with_speed(result: Record, speeds: Mapping[str, Record]) -> dict[str, Any]:
    """The result file of a sweep: an evaluation's, with a ``speed`` for each variant, and the ``choice``.

    Args:
        result: from `quality.evaluate`.
        speeds: by variant, see `sweep_engine.speed`; ``speed_up`` over the first is added.
    """
    variants = result["variants"]
    base = speeds[variants[0]["name"]]["tokens_per_second"]
    timed = []
    for variant in variants:
        speed = dict(speeds[variant["name"]])
        own = speed["tokens_per_second"]
        timed.append({**variant, "speed": {**speed, "speed_up": own / base if own and base else None}})
    return {**result, "variants": timed, "choice": choose(timed[1:])}


def choose(variants: Sequence[Record]) -> dict[str, Any]:
    """The fastest variant whose quality holds.

    Returns:
        ``fastest``, its name or None; ``closest``, if there is none, the name of the one whose intervals go
        the least beyond the limits (the worst of them, as a multiple of its limit); and a ``sentence``.
    """
    holding = [variant for variant in variants if variant["verdict"]["word"] == "holds"]
    if holding:
        best = max(holding, key=lambda variant: variant["speed"]["speed_up"] or 0)
        sentence = f"The fastest setting within the limits is {best['name']}, {_times(best)}."
        return {"fastest": best["name"], "closest": None, "sentence": sentence}
    best = min(variants, key=_excess)
    sentence = (
        f"No setting is shown to be within the limits; {best['name']}, {_times(best)}, comes closest: "
        f"{best['verdict']['sentence']}."
    )
    return {"fastest": None, "closest": best["name"], "sentence": sentence}


def speed_table(result: Record) -> Grid:
    """Speed and verdict of each variant."""
    rows = []
    for variant in result["variants"]:
        speed, content, ranking = variant["speed"], variant["content"], variant["ranking"] or {}
        auc = (ranking.get("auc") or {}).get("difference")
        rows.append(
            [
                variant["name"],
                _form("{:.2f}x", speed["speed_up"]),
                _form("{:.3f}", speed["seconds_per_document"]),
                _form("{:.2f}", speed["tokens_per_step"]),
                interval(content.get("agreement"), "{:.1%}"),
                interval(auc, "{:.4f}", signed=True),
                variant["verdict"]["word"] if variant["verdict"] else "baseline",
            ]
        )
    headings = [
        "setting",
        "speed-up",
        "s/document",
        "tokens per step",
        "agreement",
        "AUC difference",
        "verdict",
    ]
    return Grid("Speed and quality", headings, rows, left=(0, 6))


def markdown_section(result: Record) -> str:
    """What goes before the report on quality."""
    parts = ["# Which setting?", result["choice"]["sentence"], markdown_table(speed_table(result)), METHOD]
    return "\n\n".join(parts) + "\n\n"


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other beats in both respects, from the left to the right."""
    best = [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return sorted(best, key=lambda i: points[i])


def _excess(variant: Record) -> float:
    return float(max(check["excess"] for check in variant["verdict"]["checks"]))


def _times(variant: Record) -> str:
    factor = variant["speed"]["speed_up"]
    return "at an unknown speed" if factor is None else f"{factor:.2f} times as fast as the baseline"


def _form(form: str, value: float | None) -> str:
    return _MISSING if value is None else form.format(value)
