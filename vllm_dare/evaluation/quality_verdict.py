"""Whether quality holds: each interval against the most that its user would put up with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vllm_dare.evaluation.bootstrap import Estimate, Figure

Word = Literal["holds", "not shown", "worse"]

_LEAST_LIMIT = 1e-4  # what a limit of 0 counts as, where losses are told in multiples of it


@dataclass(frozen=True)
class Limits:
    """The most that may be lost.

    Attributes:
        length_change: of the length ratio, either way.
        unfinished: more of the texts that end at the token limit.
        precision_loss: of the precision of what is stated.
        auc_loss: of the ranking model's AUC, over all and within users.
        min_agreement: the least agreement of stated values; None does not judge it, since sampled texts
            differ from run to run without any being worse.
    """

    length_change: float = 0.1
    unfinished: float = 0.02
    precision_loss: float = 0.02
    auc_loss: float = 0.002
    min_agreement: float | None = None


@dataclass(frozen=True)
class Check:
    """One figure against its limit.

    Attributes:
        name: what is judged.
        word: ``holds`` where the whole interval is within the limit, ``worse`` where all of it is beyond,
            else ``not shown``.
        beyond: how far the interval's worse end is beyond the limit; negative where it is within.
        excess: the same as a multiple of the limit, so that figures can be compared.
        sentence: the same for people.
    """

    name: str
    word: Word
    beyond: float
    excess: float
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """``holds`` if all checks do, ``worse`` if one is, else ``not shown``; and each check."""

    word: Word
    sentence: str
    checks: Sequence[Check]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def judge(figures: Mapping[str, Figure], limits: Limits) -> Verdict:
    """The verdict on one variant.

    Args:
        figures: of the text, the content and the ranking together; those that are missing are not judged.
        limits: see `Limits`.
    """
    checks = [
        check
        for check in (
            _length(figures.get("length_ratio"), limits.length_change),
            _difference("unfinished texts", figures.get("unfinished"), limits.unfinished, -1, "{:.1%}"),
            _difference("precision", figures.get("precision"), limits.precision_loss, 1, "{:.1%}"),
            _difference("AUC", figures.get("auc"), limits.auc_loss, 1, "{:.4f}"),
            _difference("AUC within users", figures.get("user_auc"), limits.auc_loss, 1, "{:.4f}"),
            _agreement(figures.get("agreement"), limits.min_agreement),
        )
        if check is not None
    ]
    words = {check.word for check in checks}
    word: Word = "worse" if "worse" in words else "not shown" if "not shown" in words else "holds"
    if word == "holds":
        return Verdict(word, f"{', '.join(check.name for check in checks)} within the limits", checks)
    return Verdict(word, "; ".join(check.sentence for check in checks if check.word == word), checks)


def _length(figure: Figure | None, limit: float) -> Check | None:
    if figure is None:
        return None
    low, high = figure.estimate.low - 1, figure.estimate.high - 1
    word = _word(max(-low, high), max(low, -high), limit)
    sentence = f"length changes by {low:+.1%} to {high:+.1%}, limit {limit:.1%}"
    return _check("length", word, max(-low, high) - limit, limit, sentence)


def _difference(name: str, figure: Figure | None, limit: float, good: int, form: str) -> Check | None:
    """Where ``good`` is 1, less is worse; where it is -1, more is."""
    if figure is None or figure.difference is None:
        return None
    least, most = sorted((-good * figure.difference.low, -good * figure.difference.high))
    word = _word(most, least, limit)
    direction = "lower" if good > 0 else "more"
    if word == "worse":
        sentence = f"{name} {direction} by {form.format(least)} to {form.format(most)}"
    else:
        sentence = f"{name} may be {direction} by up to {form.format(most)}"
    return _check(name, word, most - limit, limit, f"{sentence}, limit {form.format(limit)}")


def _agreement(figure: Figure | None, least: float | None) -> Check | None:
    if figure is None or least is None:
        return None
    found: Estimate = figure.estimate
    sentence = f"agreement is {found.low:.1%} to {found.high:.1%}, limit {least:.1%}"
    word = _word(1 - found.low, 1 - found.high, 1 - least)
    return _check("agreement", word, least - found.low, 1 - least, sentence)


def _check(name: str, word: Word, beyond: float, limit: float, sentence: str) -> Check:
    return Check(name, word, beyond, beyond / max(limit, _LEAST_LIMIT), sentence)


def _word(most: float, least: float, limit: float) -> Word:
    """From the most and the least that is lost, as the interval has them."""
    if most <= limit:
        return "holds"
    return "worse" if least > limit else "not shown"
