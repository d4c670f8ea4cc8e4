"""The rule that says which draft tokens a request keeps though vLLM's own rule rejects them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Protected = Literal["digits", "json", "quoted"]

# What each preset sets; everything else has the default of its field, which binds nothing.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {"top_k": 2, "min_prob": 0.1, "guard_stop_tokens": False},
        "content": {"top_k": 3, "min_ratio": 0.2, "wording_only": True},
        "careful": {"top_k": 2, "min_prob": 0.1, "min_ratio": 0.9},
        "fast": {"top_k": 3, "min_prob": 0.05, "drawn_drafts": False},
        "fly": {"min_entropy": 0.3, "window": 6, "guard_stop_tokens": False},
    }
)
DEFAULT_PRESET = "content"
# Rules reach the kernels as numbers of a fixed size.
_LARGEST = 2**31 - 1


class VerificationConfig(BaseModel):
    """When a draft token that vLLM's own rule rejects may be kept all the same.

    With p the target's processed distribution, x the draft token and m the most probable token, x is kept in
    mode ``relaxed`` iff all of these hold:

    - it ranks among the ``top_k`` most probable tokens (None: any rank);
    - p(x) > ``min_prob`` and p(x) >= ``min_ratio`` * p(m), so that it costs at most log(1 / min_ratio) of
      log-probability;
    - the entropy of the three most probable tokens is at least ``min_entropy`` nats, and vLLM's own rule
      would accept the next ``window`` draft tokens (FLy, arXiv 2511.22972);
    - neither x nor m is guarded: a stop token (``guard_stop_tokens``) or a token in ``never_relax`` or
      ``protect``; and the place is not one where, in the pool, the choice of token decides what the text
      goes on to say (``wording_only``, see `vllm_dare.pool.pivots`; without a pool that knows, nothing is
      kept);
    - the request's budget is not spent: at most ``max_relaxed`` tokens in all, ``max_relaxed_per_100`` of a
      hundred (of the first n tokens at most n / 100 times as many), and ``max_relaxed_in_row`` one after the
      other.

    A token with p(x) = 0 is never kept. Mode ``strict`` keeps nothing, whatever the rest says.

    Attributes:
        mode: "relaxed" is the default where a preset is named, "strict" where none is.
        preset: the rule to begin with, a name in `PRESETS`; every setting beside it goes before it.
        never_relax: token ids, or strings: a string guards the tokens that it is written with and every
            token whose text contains it.
        protect: "digits" guards every token with a digit, "json" those with any of ``{}[]":,``, "quoted"
            double quotation marks and what stands between them.
        drawn_drafts: whether drafts are drawn from what the pool knows; else each is the likeliest, which is
            faster, and draws all texts towards the commonest wording.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["strict", "relaxed"] = "strict"
    preset: str = DEFAULT_PRESET
    top_k: int | None = Field(default=None, ge=1, le=_LARGEST)
    min_prob: float = Field(default=0.0, ge=0, lt=1)
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    min_entropy: float = Field(default=0.0, ge=0)
    window: int = Field(default=0, ge=0, le=_LARGEST)
    max_relaxed: int | None = Field(default=None, ge=0, le=_LARGEST)
    max_relaxed_per_100: int | None = Field(default=None, ge=0, le=100)
    max_relaxed_in_row: int | None = Field(default=None, ge=0, le=_LARGEST)
    guard_stop_tokens: bool = True
    never_relax: tuple[int | str, ...] = ()
    protect: tuple[Protected, ...] = ()
    wording_only: bool = False
    drawn_drafts: bool = True

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Put the preset below what is given."""
        if not isinstance(given, Mapping):
            return given
        name = given.get("preset", DEFAULT_PRESET)
        preset = PRESETS.get(name, {}) if isinstance(name, str) else {}
        implied = {"mode": "relaxed"} if "preset" in given else {}
        return {**implied, **preset, **given}

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"the presets are {', '.join(PRESETS)}")
        return name

    @field_validator("never_relax")
    @classmethod
    def _usable(cls, entries: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if any(entry == "" or (isinstance(entry, int) and not 0 <= entry <= _LARGEST) for entry in entries):
            raise ValueError(f"its entries must be token ids from 0 to {_LARGEST} or non-empty strings")
        return entries

    @property
    def relaxes(self) -> bool:
        """Whether a token may be kept at all."""
        return self.mode == "relaxed"


class RuleLimits(BaseModel):
    """The loosest rule that requests may ask for; None leaves a bound to them.

    A bound that a request names beyond its limit is an error; one that it leaves to a preset or to the
    engine's default is tightened to the limit.

    Attributes:
        presets: the presets that they may name.
        top_k, max_relaxed, max_relaxed_per_100, max_relaxed_in_row: the largest values.
        min_prob, min_ratio: the smallest values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    presets: tuple[str, ...] | None = None
    top_k: int | None = Field(default=None, ge=1, le=_LARGEST)
    min_prob: float | None = Field(default=None, ge=0, lt=1)
    min_ratio: float | None = Field(default=None, ge=0, le=1)
    max_relaxed: int | None = Field(default=None, ge=0, le=_LARGEST)
    max_relaxed_per_100: int | None = Field(default=None, ge=0, le=100)
    max_relaxed_in_row: int | None = Field(default=None, ge=0, le=_LARGEST)

    @field_validator("presets")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in PRESETS:
                raise ValueError(f"the presets are {', '.join(PRESETS)}")
        return names

    def exceeded(self, rule: VerificationConfig) -> list[str]:
        """The fields of a relaxed rule that are looser than allowed."""
        if not rule.relaxes:
            return []
        found = []
        for name in ("top_k", "max_relaxed", "max_relaxed_per_100", "max_relaxed_in_row"):
            most, asked = getattr(self, name), getattr(rule, name)
            if most is not None and (asked is None or asked > most):
                found.append(name)
        for name in ("min_prob", "min_ratio"):
            least = getattr(self, name)
            if least is not None and getattr(rule, name) < least:
                found.append(name)
        return found
