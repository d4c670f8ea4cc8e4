"""Cold start: the documents of a corpus in their order, each drafted for from those before it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from vllm_dare.drafting.drafter import Drafter, Sources
from vllm_dare.evaluation.corpus import Corpus
from vllm_dare.evaluation.peers import ARCTIC_SETTINGS, ArcticArm, ArcticTree, NgramArm
from vllm_dare.evaluation.replay import DareSession, ReplayResult, replay_text
from vllm_dare.evaluation.study import (
    DARE,
    Scheme,
    Setting,
    check_lengths,
    check_peers,
    check_some_group,
    make_setting,
)
from vllm_dare.evaluation.tally import Tally
from vllm_dare.evaluation.walk import Arm, Session, Text, Tokens
from vllm_dare.pool.live import LiveDocument, LivePool
from vllm_dare.pool.segment import Segment

BLOCK_DOCUMENTS = 100
_UNBOUNDED = 2**62

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Order:
    """What is compared.

    Attributes:
        corpus: the documents, in the order in which they are written.
        schemes, max_drafts, sources, peers: see `vllm_dare.evaluation.study.Study`.
        limit: how many documents are replayed; None for all.

    Raises:
        DareError: a setting cannot work with this corpus.
    """

    corpus: Corpus
    schemes: Sequence[Scheme]
    max_drafts: Sequence[int]
    sources: Sequence[tuple[str, ...]]
    peers: Sequence[str] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        check_peers(self.peers)
        check_lengths(self.max_drafts)
        if any("group" in sources for sources in self.sources):
            for scheme in self.schemes:
                check_some_group(scheme, self.replayed)

    @property
    def replayed(self) -> list[str]:
        """The ids that are drafted for."""
        return list(self.corpus.texts)[: self.limit]

    def settings(self) -> list[Setting]:
        """Every combination that makes a difference."""
        found = [
            make_setting(DARE, length, sources, scheme.name)
            for scheme, sources, length in product(self.schemes, self.sources, self.max_drafts)
        ]
        if "arctic" in self.peers:
            found += [
                make_setting(peer.name, length, ("own", "global"))
                for peer, length in product(ARCTIC_SETTINGS, self.max_drafts)
            ]
        if "ngram" in self.peers:
            found += [make_setting("ngram", length, ("own",)) for length in self.max_drafts]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class OrderOutcome:
    """What became of one setting.

    Attributes:
        setting: the setting; its pool is what it has learned.
        result: the counts over all documents.
        blocks: (tokens, steps) of each `BLOCK_DOCUMENTS` documents, of fewer in the last block.
    """

    setting: Setting
    result: ReplayResult
    blocks: list[tuple[int, int]]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "setting": self.setting.as_dict(),
            "pool": None,
            **self.result.tally.figures(),
            "blocks": [
                {
                    "from": i * BLOCK_DOCUMENTS,
                    "tokens": tokens,
                    "steps": steps,
                    "tokens_per_step": tokens / steps,
                }
                for i, (tokens, steps) in enumerate(self.blocks)
            ],
        }


def run_order(order: Order, tell: Tell | None = None) -> Iterator[OrderOutcome]:
    """Replay the documents with each setting, which learns as it goes.

    Args:
        order: what to compare.
        tell: called with what is being done, and how many documents of how many are drafted for.
    """
    settings, ids = order.settings(), order.replayed
    for number, setting in enumerate(settings):
        groups = next((scheme.group_of for scheme in order.schemes if scheme.name == setting.scheme), {})
        arm = _arm(setting, order.corpus.tokenizer.vocab_size)
        tally, blocks = Tally(setting.max_drafts), []
        for done, i in enumerate(ids):
            if done % BLOCK_DOCUMENTS == 0:
                blocks.append((0, 0))
            tokens, steps = tally.tokens, tally.steps
            replay_text(replace(order.corpus.texts[i], group=groups.get(i)), arm, tally)
            blocks[-1] = (blocks[-1][0] + tally.tokens - tokens, blocks[-1][1] + tally.steps - steps)
            if tell is not None:
                tell(setting.label, number * len(ids) + done + 1, len(settings) * len(ids))
        yield OrderOutcome(setting, ReplayResult(arm.name, tally), blocks)


def _arm(setting: Setting, vocab_size: int) -> Arm:
    if setting.drafter == DARE:
        return LearningArm(vocab_size, setting.max_drafts, setting.sources)
    if setting.drafter == "ngram":
        return NgramArm(setting.max_drafts)
    preset = next(preset for preset in ARCTIC_SETTINGS if preset.name == setting.drafter)
    return ArcticArm(ArcticTree([]), preset, setting.max_drafts, learns=True)


class LearningArm:
    """This package's drafter with an empty pool, to which every text is added when it is done.

    Args:
        vocab_size: of the tokenizer.
        max_drafts: the longest chain.
        sources: what drafts, of "own", "group" and "global".
    """

    name = DARE

    def __init__(self, vocab_size: int, max_drafts: int, sources: Sequence[str]) -> None:
        self.max_drafts = max_drafts
        self.sources = sources
        self.drafter = Drafter(None, max_drafts, vocab_size)
        self.drafter.compile()
        self.live = LivePool(_Nothing(), has_global="global" in sources, max_unfrozen_tokens=_UNBOUNDED)

    def start(self, text: Text) -> Session:
        group, overall = self.live.segments(text.group)
        sources = Sources.of(live_group=group, live_overall=overall)
        return _LearningSession(self, DareSession(self.drafter, sources, text), text)


class _LearningSession:
    def __init__(self, arm: LearningArm, session: DareSession, text: Text) -> None:
        self._arm = arm
        self._session = session
        self._text = text
        self.draft, self.chain = session.draft, session.chain

    def extend(self, tokens: Tokens) -> None:
        self._session.extend(tokens)

    def close(self) -> None:
        if self._arm.sources != ("own",):
            self._arm.live.add([LiveDocument(self._text.output, self._text.group, "external")])


class _Nothing:
    """No text on disk."""

    num_tokens = 0

    def group_segments(self, _group: str | None) -> tuple[Segment, ...]:
        return ()

    def global_segments(self) -> tuple[Segment, ...]:
        return ()
