"""The closing tables of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from vllm_dare.generation.compare import Agreement
from vllm_dare.generation.job import Outcome

_FIGURES = (
    ("documents/s", "documents_per_second", "{:.2f}"),
    ("tokens/s", "tokens_per_second", "{:.0f}"),
    ("tokens per step", "tokens_per_step", "{:.2f}"),
    ("drafts accepted", "acceptance_rate", "{:.0%}"),
    ("mean tokens", "mean_tokens", "{:.1f}"),
    ("seconds", "seconds", "{:.1f}"),
)


def outcome_table(outcome: Outcome) -> Table:
    """What one run did."""
    table = Table(title="This run", show_header=False, title_justify="left")
    table.add_row("documents", f"{outcome.figures.rows}" + _aside(outcome.earlier, "from earlier runs"))
    table.add_row("failed", str(outcome.failed))
    table.add_row("tokens", str(outcome.figures.completion_tokens))
    figures = outcome.figures.as_dict()
    for label, name, form in _FIGURES:
        if figures[name] is not None:
            table.add_row(label, form.format(figures[name]))
    if (relaxed := outcome.figures.relaxed) is not None:
        share = relaxed.relaxed / max(outcome.figures.completion_tokens, 1)
        table.add_row("relaxed tokens", f"{relaxed.relaxed} ({share:.1%})")
        table.add_row("given up by them", f"{relaxed.given_up:.1f} nats of log-probability")
        if relaxed.budget_stops:
            table.add_row("budget spent", f"{relaxed.budget_stops} times")
    if (learned := outcome.learned) is not None:
        text = f"{learned.documents} documents, {learned.tokens} tokens"
        table.add_row("learned", text + _aside(learned.known, "known before"))
        if learned.relaxed:
            table.add_row("left out", f"{learned.relaxed} relaxed texts, from which drafts would drift")
        if learned.failure is not None:
            table.add_row("not learned", f"{learned.failure}; mend that, so that the next run can learn")
        if (unsent := learned.unsent) is not None:
            table.add_row(
                "not sent yet",
                f"{unsent.documents} documents, {unsent.tokens} tokens wait in {unsent.directory}; the next "
                "run with --learn on this machine, or engine that learns, sends them once the store answers",
            )
    return table


def comparison_table(
    names: Sequence[str], figures: Sequence[Mapping[str, Any]], agreements: Sequence[Agreement], title: str
) -> Table:
    """Runs over the same rows side by side.

    Args:
        names: a name for each run, the baseline first.
        figures: each run's `Figures.as_dict`.
        agreements: how each run after the baseline agrees with it.
    """
    table = Table("", *names, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    base = figures[0]["documents_per_second"]
    ratios = [(run["documents_per_second"] or 0) / base if base else 0 for run in figures]
    table.add_row("speed-up", *(f"{ratio:.2f}x" for ratio in ratios), style="bold")
    for label, name, form in _FIGURES:
        table.add_row(label, *("-" if run[name] is None else form.format(run[name]) for run in figures))
    table.add_row("same texts", "", *(f"{item.same_texts:.0%}" for item in agreements))
    table.add_row("same leading tokens", "", *(f"{item.same_leading_tokens:.0%}" for item in agreements))
    return table


def _aside(count: int, text: str) -> str:
    return f" (and {count} {text})" if count else ""
