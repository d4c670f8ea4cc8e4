"""Walking a text as speculative decoding would if the target model were certain to write it.

The target's first step reads the prompt and writes one token, without drafts. Every further step verifies a
chain: of its tokens those that the text goes on with are accepted, and the target adds one token of its own.
This is what vLLM does for a greedy request whose output is the text.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


def _no_tokens() -> Tokens:
    return np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class Text:
    """What a model wrote, and what it was asked.

    Attributes:
        id: whom or what it is about.
        output: int32[length], the text; with the end-of-text token if that is to count as a token of its own.
        prompt: int32[any], may be empty.
        group: whose text drafts; None for everybody's.
        max_tokens: where the engine would stop in any case: the request's ``max_tokens``, or what the prompt
            leaves of ``max_model_len`` if that is less. No chain is longer than what is left, less one. None
            for no such bound, which is right for a text that ended by itself.
    """

    id: str
    output: Tokens
    prompt: Tokens = field(default_factory=_no_tokens)
    group: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, eq=False)
class Chain:
    """What a drafter proposed.

    Attributes:
        tokens: int32[length].
        survivals: float32[length], the predicted probability that the chain is right up to and including
            each token; None if the drafter makes no such prediction.
        origins: int8[length], an `Origin` for each token; None if unknown.
        match: how many of the text's last tokens were found elsewhere to draft the first token; None if
            unknown.
    """

    tokens: Tokens
    survivals: npt.NDArray[np.float32] | None = None
    origins: npt.NDArray[np.int8] | None = None
    match: int | None = None


class Session(Protocol):
    """A drafter at work on one text."""

    def extend(self, tokens: Tokens) -> None:
        """The output has grown by these tokens."""

    def draft(self, limit: int) -> list[int]:
        """At most ``limit`` (at least 1) tokens to follow the prompt and the output so far. This is timed."""

    def chain(self) -> Chain:
        """The tokens that `draft` has just returned, with all that is known of them."""

    def close(self) -> None:
        """The text is done, or given up; called once."""


class Arm(Protocol):
    """A drafter with its settings.

    Attributes:
        name: for tables and messages.
        max_drafts: the longest chain, in tokens.
    """

    @property
    def name(self) -> str: ...

    @property
    def max_drafts(self) -> int: ...

    def start(self, text: Text) -> Session:
        """Begin a text; of its output, nothing may be used before `Session.extend` hands it over."""


class Step(NamedTuple):
    """One run of the target model.

    Attributes:
        chain: what was verified; None if nothing was asked for, as in the first step.
        accepted: how many of its tokens were.
        judged: how many of its tokens the text goes far enough to judge.
        written: how many tokens of the text came out, at least 1.
        nanoseconds: how long the drafter took.
    """

    chain: Chain | None
    accepted: int
    judged: int
    written: int
    nanoseconds: int


def walk(session: Session, text: Text, max_drafts: int) -> Iterator[Step]:
    """The steps in which ``text.output`` comes out.

    Args:
        session: a session for this text, fresh.
        text: the text.
        max_drafts: the longest chain to ask for.
    """
    output = text.output
    end = len(output) if text.max_tokens is None else text.max_tokens
    position = 0
    while position < len(output):
        limit = max_drafts if text.max_tokens is None else min(max_drafts, end - position - 1)
        chain, nanoseconds = None, 0
        if position > 0 and limit > 0:
            started_at = time.perf_counter_ns()
            session.draft(limit)
            nanoseconds = time.perf_counter_ns() - started_at
            chain = session.chain()
        judged = 0 if chain is None else min(len(chain.tokens), len(output) - position)
        accepted = 0 if chain is None else _matching(chain.tokens[:judged], output[position:])
        written = min(accepted + 1, len(output) - position)
        session.extend(output[position : position + written])
        position += written
        yield Step(chain, accepted, judged, written, nanoseconds)


def _matching(chain: Tokens, following: Tokens) -> int:
    """How many tokens of the chain, from its first, are those of the text."""
    wrong = np.flatnonzero(chain != following[: len(chain)])
    return int(wrong[0]) if len(wrong) else len(chain)
