"""The arms of a bench: which ways of decoding are compared, and the engine that each needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from vllm_dare.errors import DareError
from vllm_dare.generation.settings import EngineSettings
from vllm_dare.verification.rule import PRESETS

Method = Literal["none", "ngram", "suffix", "strict", "relaxed"]

METHODS: tuple[Method, ...] = get_args(Method)
DARE_METHODS = ("strict", "relaxed")
BASELINE = "none"
MAX_DRAFT = 128  # vLLM's MAX_SPEC_LEN
WORKER_EXTENSION = "vllm_dare.evaluation.bench_worker.BenchWorker"


@dataclass(frozen=True)
class Arm:
    """One way of decoding.

    Attributes:
        method: ``none`` (no speculation), vLLM's ``ngram`` or ``suffix``, or DARE, ``strict`` or ``relaxed``.
        fixed: DARE alone: always draft so many tokens; None lets the draft budget decide.
        preset: ``relaxed`` alone: its rule; None is the engine's default.
    """

    method: Method
    fixed: int | None = None
    preset: str | None = None

    @property
    def name(self) -> str:
        """What the user calls it: ``strict``, ``strict@4``, ``relaxed:fast@4``."""
        rule = self.method if self.preset is None else f"{self.method}:{self.preset}"
        return rule if self.fixed is None else f"{rule}@{self.fixed}"

    @property
    def uses_dare(self) -> bool:
        return self.method in DARE_METHODS

    @property
    def engine(self) -> str:
        """The name of its engine; ``strict`` and ``relaxed``, which each request chooses, share one."""
        if not self.uses_dare:
            return self.name
        return "dare" if self.fixed is None else f"dare@{self.fixed}"

    @property
    def request_keys(self) -> dict[str, str]:
        """What its requests carry in ``extra_args``."""
        keys: dict[str, str] = {"dare_verification": self.method} if self.uses_dare else {}
        return keys if self.preset is None else {**keys, "dare_preset": self.preset}

    def llm_args(self, engine: EngineSettings, max_draft: int, suffix_texts: int) -> dict[str, Any]:
        """The arguments of ``vllm.LLM`` for this arm.

        Args:
            engine: what all arms have in common.
            max_draft: the longest draft of an arm without a fixed length.
            suffix_texts: how many texts vLLM's suffix decoding must be able to hold.
        """
        draft = self.fixed or max_draft
        arguments = replace(engine, draft_tokens=draft if self.uses_dare else 0).llm_args()
        if self.fixed is not None:
            arguments["additional_config"]["dare"]["draft_budget"] = "fixed"
        if self.method in ("ngram", "suffix"):
            arguments["speculative_config"] = {"method": self.method, "num_speculative_tokens": draft}
        if self.method == "suffix":
            arguments["speculative_config"]["suffix_decoding_max_cached_requests"] = suffix_texts
        return arguments | {"worker_extension_cls": WORKER_EXTENSION}


def parse_arms(names: Sequence[str], drafts: Sequence[int]) -> list[Arm]:
    """The arms that ``--arms`` and ``--draft`` ask for, each once.

    With several draft lengths, each of them makes an arm of its own of every DARE arm: ``strict@4``.

    Raises:
        DareError: an unknown arm, or a draft length that vLLM does not verify.
    """
    for draft in drafts:
        _check_draft(draft, "--draft")
    arms = []
    for name in names:
        arm = _parse(name)
        arms.append(arm)
        if arm.uses_dare and arm.fixed is None and len(drafts) > 1:
            arms += [replace(arm, fixed=draft) for draft in sorted(drafts)]
    return list(dict.fromkeys(arms))


def engines_of(arms: Sequence[Arm]) -> list[tuple[Arm, ...]]:
    """The arms of each engine, in the order in which the engines are first named."""
    engines: dict[str, list[Arm]] = {}
    for arm in arms:
        engines.setdefault(arm.engine, []).append(arm)
    return [tuple(members) for members in engines.values()]


def in_turns(engines: Sequence[tuple[Arm, ...]], repeats: int) -> Iterator[tuple[int, tuple[Arm, ...]]]:
    """Pairs of repeat (from 1) and engine: every other repeat goes backwards, so that no arm is always last.

    A machine that warms up or slows down in the course of a run then does so for all arms alike.
    """
    for repeat in range(1, repeats + 1):
        backwards = repeat % 2 == 0
        for members in reversed(engines) if backwards else engines:
            yield repeat, tuple(reversed(members)) if backwards else members


def _parse(name: str) -> Arm:
    rule, at, length = name.partition("@")
    method, colon, preset = rule.partition(":")
    if method not in METHODS:
        raise DareError(
            f"There is no arm {name!r}: --arms takes {', '.join(METHODS)}, and strict@4, relaxed:fast "
            "and such."
        )
    if colon and (method != "relaxed" or preset not in PRESETS):
        raise DareError(f"There is no arm {name!r}: relaxed takes the presets {', '.join(PRESETS)}.")
    if not at:
        return Arm(method, preset=preset or None)
    if method not in DARE_METHODS:
        raise DareError(f"The arm {name!r} cannot have a fixed draft length: only strict and relaxed can.")
    if not length.isdecimal():
        raise DareError(f"The arm {name!r} needs a whole number after the @, as in {method}@4.")
    _check_draft(int(length), f"the arm {name!r}")
    return Arm(method, int(length), preset or None)


def _check_draft(draft: int, where: str) -> None:
    if not 1 <= draft <= MAX_DRAFT:
        raise DareError(f"{where} drafts {draft} tokens, but vLLM verifies between 1 and {MAX_DRAFT} a step.")
