"""Replay: drafting for known texts, without a model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_dare.drafting.drafter import Drafter, Sources
from vllm_dare.evaluation.tally import Tally
from vllm_dare.evaluation.walk import Arm, Chain, Session, Text, Tokens, walk

Progress = Callable[[], None]


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """How one arm did on some texts.

    Attributes:
        arm: its name.
        tally: the counts; see `Tally.figures` for what they come to.
    """

    arm: str
    tally: Tally

    @property
    def tokens_per_step(self) -> float:
        """Output tokens for each run of the target model, prefill included; 1 without drafts."""
        return self.tally.tokens / max(self.tally.steps, 1)


def replay(
    texts: Sequence[Text], arms: Iterable[Arm], progress: Progress | None = None
) -> list[ReplayResult]:
    """Walk some texts with each arm.

    For the texts that a greedy engine wrote (with the same prompts and groups, the end token included, and
    `Text.max_tokens` as it was) an arm takes as many steps as the engine took with the same drafter.

    Args:
        texts: the texts, each drafted for by itself.
        arms: the drafters, such as `DareArm`.
        progress: called after each text of each arm.
    """
    return [replay_arm(texts, arm, progress) for arm in arms]


def replay_arm(texts: Iterable[Text], arm: Arm, progress: Progress | None = None) -> ReplayResult:
    """Walk some texts with one arm; see `replay`."""
    tally = Tally(arm.max_drafts)
    for text in texts:
        replay_text(text, arm, tally)
        if progress is not None:
            progress()
    return ReplayResult(arm.name, tally)


def replay_text(text: Text, arm: Arm, tally: Tally) -> None:
    """Walk one text and count its steps."""
    session = arm.start(text)
    try:
        for step in walk(session, text, arm.max_drafts):
            tally.add(step)
        tally.texts += 1
    finally:
        session.close()


class DareArm:
    """This package's drafter.

    Args:
        drafter: the drafter; its pool decides which sources there are.
        name: for tables.
        end_token: the token that ends texts, drafted where documents end; -1 for none.
    """

    def __init__(self, drafter: Drafter, name: str = "dare", end_token: int = -1) -> None:
        self.drafter = drafter
        self.name = name
        self.max_drafts = drafter.max_drafts
        self.end_token = end_token

    def start(self, text: Text) -> Session:
        return DareSession(self.drafter, self.drafter.sources(text.group), text, self.end_token)


class DareSession:
    """One row of a batch, as vLLM keeps it: prompt and output so far.

    Args:
        drafter: the drafter.
        sources: what drafts.
        text: the text.
        end_token: see `DareArm`.
    """

    def __init__(self, drafter: Drafter, sources: Sources, text: Text, end_token: int = -1) -> None:
        self._drafter = drafter
        self._text = np.zeros((1, len(text.prompt) + len(text.output)), np.int32)
        self._text[0, : len(text.prompt)] = text.prompt
        self._size = np.array([len(text.prompt)])
        self._batch = drafter.batch([0], [sources], ends=[end_token])

    def extend(self, tokens: Tokens) -> None:
        size = int(self._size[0])
        self._text[0, size : size + len(tokens)] = tokens
        self._size[0] += len(tokens)

    def draft(self, limit: int) -> list[int]:
        drafts = self._drafts = self._drafter.draft(self._text, self._batch, self._size, np.array([limit]))
        token_ids: list[int] = drafts.tokens[0, : drafts.lengths[0]].tolist()
        return token_ids

    def chain(self) -> Chain:
        drafts = self._drafts
        length = int(drafts.lengths[0])
        return Chain(
            drafts.tokens[0, :length].copy(),
            drafts.survivals[0, :length].copy(),
            drafts.origins[0, :length].copy(),
            int(drafts.matches[0, 0]) if length else None,
        )

    def close(self) -> None:
        pass
