"""What a run has added to the text that its pool has learned."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dare.errors import PoolError
from vllm_dare.generation.settings import EngineSettings

if TYPE_CHECKING:
    from vllm_dare.store.outbox import Unsent


@dataclass(frozen=True)
class Learned:
    """Text in a pool's live directory.

    Attributes:
        documents, tokens: how many, each counted once.
        known: how many texts were not kept because their group had them already.
        relaxed: how many because they were verified relaxed.
        failure: what went wrong, as a clause; None if nothing did.
        unsent: what of this machine's text is not in the pool's store yet; None if all is, or there is none.
    """

    documents: int
    tokens: int
    known: int = 0
    relaxed: int = 0
    failure: str | None = None
    unsent: "Unsent | None" = None


def learned_so_far(engine: EngineSettings) -> Learned | None:
    """What the live directory of a started engine's pool holds; None if the engine does not learn."""
    if not engine.learn or engine.pool is None:
        return None
    from vllm_dare.pool.live_store import LIVE_DIRECTORY
    from vllm_dare.pool.manifest import read_manifest
    from vllm_dare.pool.summary import summarize
    from vllm_dare.store.cache import pool_directory

    try:
        summary = summarize(read_manifest(pool_directory(engine.pool) / LIVE_DIRECTORY))
    except PoolError:  # removed in the meantime; the engine's log says so
        return Learned(0, 0)
    return Learned(summary.num_documents, summary.num_tokens)


def end_learning(llm: Any, engine: EngineSettings) -> Mapping[str, Any]:
    """Have the engine write down what it has learned; returns how that went, see `Learner.outcome`."""
    if not engine.learn:
        return {}
    try:
        answers = llm.collective_rpc("dare_end_learning")
    except Exception as error:  # learning may fail, the run may not
        return {"failure": f"the engine could not be asked about it ({error})"}
    return next((answer for answer in answers if answer is not None), {})


def learned_since(before: Learned | None, engine: EngineSettings, end: Mapping[str, Any]) -> Learned | None:
    """What has come since: other engines' text counts too, and what made room for it is taken off.

    Args:
        before: from `learned_so_far`.
        engine: the engine's settings.
        end: from `end_learning`.
    """
    now = learned_so_far(engine)
    if before is None or now is None:
        return None
    documents, tokens = max(now.documents - before.documents, 0), max(now.tokens - before.tokens, 0)
    return Learned(documents, tokens, unsent=_unsent(engine.pool), **end)


def _unsent(pool: Path | str | None) -> "Unsent | None":
    """What of the text that was learned on this machine is on its way to a store still."""
    if not isinstance(pool, str):
        return None
    from vllm_dare.store.cache import Place
    from vllm_dare.store.outbox import Outbox

    try:
        with closing(Place(pool)) as place:
            return Outbox(place).unsent()
    except (PoolError, OSError):  # the engine's log says so
        return None
