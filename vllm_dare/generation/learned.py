"""What a run has added to the text that its pool has learned."""

from dataclasses import dataclass

from vllm_dare.errors import PoolError
from vllm_dare.generation.settings import EngineSettings


@dataclass(frozen=True)
class Learned:
    """Text in a pool's live directory.

    Attributes:
        documents, tokens: how many, each counted once.
    """

    documents: int
    tokens: int


def learned_so_far(engine: EngineSettings) -> Learned | None:
    """What the live directory of a started engine's pool holds; None if the engine does not learn."""
    if not engine.learn or engine.pool is None:
        return None
    from vllm_dare.pool.live_store import LIVE_DIRECTORY
    from vllm_dare.pool.manifest import read_manifest
    from vllm_dare.pool.summary import summarize

    try:
        summary = summarize(read_manifest(engine.pool / LIVE_DIRECTORY))
    except PoolError:  # removed in the meantime; the engine's log says so
        return Learned(0, 0)
    return Learned(summary.num_documents, summary.num_tokens)


def learned_since(before: Learned | None, engine: EngineSettings) -> Learned | None:
    """What has come since: other engines' text counts too, and what made room for it is taken off."""
    now = learned_so_far(engine)
    if before is None or now is None:
        return None
    return Learned(max(now.documents - before.documents, 0), max(now.tokens - before.tokens, 0))
