"""Learning while serving: what finished requests wrote becomes text to draft from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.logger import init_logger

from vllm_dare.config import LiveConfig
from vllm_dare.pool.live import LiveDocument, LivePool
from vllm_dare.pool.live_keeper import Engine, LiveKeeper, frozen_share
from vllm_dare.pool.live_store import LiveStore, PassOn, prepare_live
from vllm_dare.pool.pool import RetrievalPool

logger = init_logger(f"vllm.{__name__}")  # below "vllm", the only logger that vLLM gives a handler

# A text that the model did not end itself (cut at its length, at a stop string, or by a client that has gone)
# is learned as if it ended there, which costs a later request one wrong draft at that place. Shorter ones are
# not worth it.
_MIN_CUT_TOKENS = 16


@dataclass(frozen=True)
class Written:
    """A request that is over.

    Attributes:
        request: vLLM's ``CachedRequestState``.
        group: the group that drafted for it; None without one.
        relaxed: whether its drafts were verified under a relaxed rule.
        max_tokens: the most it may write.
        key: of the user or item it names, see `vllm_dare.pool.assignments.document_key`; 0 if it names none.
    """

    request: Any
    group: str | None
    relaxed: bool
    max_tokens: int
    key: int = 0


class Learner:
    """Takes in the output of requests; prompts are not learned, for they may hold anybody's data.

    A failure costs text that could have been learned, never a request.

    Args:
        config: the settings.
        pool: the pool to learn into. Where it keeps no text for everybody, nothing is learned for everybody.
        pass_on: called, in the background, with text that is about to be written to disk.

    Attributes:
        live: what drafts.
        errors: how often learning has failed.

    Raises:
        PoolError: the pool cannot be learned into.
    """

    def __init__(self, config: LiveConfig, pool: RetrievalPool, pass_on: PassOn = lambda _: None) -> None:
        self._config = config
        self._vocab_size = pool.tokenizer.vocab_size
        self.errors = 0
        self._failure: str | None = None
        self._num_relaxed = 0
        has_global = bool(pool.manifest.global_segments)
        self._store = LiveStore(
            prepare_live(pool.directory, pool.tokenizer, verify=False),
            pool.tokenizer,
            has_global=has_global,
            max_tokens=frozen_share(config.max_tokens),
            pass_on=pass_on,
        )
        self._keeper = LiveKeeper(
            self._store, has_global=has_global, max_tokens=config.max_tokens, on_stop=self._stopped
        )
        self.live: LivePool = self._keeper.live

    def start(self, engine: Engine) -> None:
        """Begin to write to disk, to read what other engines write, and to follow orders, in the background.

        Args:
            engine: asked, in the background, to `learn` what nobody else asks for, and to forget.
        """
        self._keeper.start(engine)

    def learn(self, written: Sequence[Written]) -> None:
        """Let requests that are over draft for later ones."""
        if not written:
            return
        try:
            documents = [document for one in written if (document := self._document(one)) is not None]
            if documents:
                self._keeper.add(documents)
        except Exception as error:
            self._count_error(error)

    def close(self) -> None:
        """Write what is not on disk yet."""
        self._keeper.close()

    def outcome(self) -> dict[str, Any]:
        """How learning went so far.

        Returns:
            ``known``, how many texts were not kept because their group had them already; ``relaxed``, how
            many because they were verified so; and ``failure``, what went wrong first, as a clause; None if
            nothing did.
        """
        return {"known": self._store.num_known, "relaxed": self._num_relaxed, "failure": self._failure}

    @property
    def num_evicted(self) -> int:
        """How many tokens have given way to newer ones."""
        return self._store.num_evicted

    def _document(self, written: Written) -> LiveDocument | None:
        if written.relaxed and not self._config.learn_relaxed:
            self._num_relaxed += 1
            return None
        tokens = _output(written, self._vocab_size)
        if tokens is None:
            return None
        return LiveDocument(tokens, written.group, "relaxed" if written.relaxed else "strict", written.key)

    def _count_error(self, error: Exception) -> None:
        self.errors += 1
        self._failure = self._failure or f"a text could not be learned ({_reason(error)})"
        if self.errors == 1:
            logger.error(
                "vllm-dare: a text could not be learned (further ones are counted, not logged): %s: %s",
                type(error).__name__,
                error,
            )

    def _stopped(self, error: Exception) -> None:
        self.errors += 1
        self._failure = self._failure or f"{self._store.directory} could not be written ({_reason(error)})"
        logger.error(
            "vllm-dare: until the next start, what is learned is neither written to disk nor read from it; "
            "the latest text is kept in memory: %s: %s",
            type(error).__name__,
            error,
        )


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.rstrip(".")


def _output(written: Written, vocab_size: int) -> np.ndarray | None:
    """What a request wrote, int32[n], without the token that ended it; None if it is not worth learning.

    The worker's text can go on after its end: a step's accepted drafts are all there, and only the scheduler
    cuts them.
    """
    request = written.request
    tokens = np.array(request.output_token_ids[: written.max_tokens], np.int32)
    ends = np.isin(tokens, np.array(_stop_tokens(request.sampling_params), np.int32)).nonzero()[0]
    foreign = ((tokens < 0) | (tokens >= vocab_size)).nonzero()[0]  # padding ids that no tokenizer has
    tokens = tokens[: min([len(tokens), *ends[:1], *foreign[:1]])]
    has_end = len(ends) > 0 and len(tokens) == ends[0]
    return tokens if len(tokens) >= (1 if has_end else _MIN_CUT_TOKENS) else None


def _stop_tokens(params: Any) -> list[int]:
    """The tokens after which a request's text is over; with ``ignore_eos`` only those it names itself."""
    if params is None:
        return []
    return list(params.stop_token_ids or () if params.ignore_eos else params.all_stop_token_ids)
