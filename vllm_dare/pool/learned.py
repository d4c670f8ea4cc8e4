"""What engines learn into a pool, from outside: add documents to it, and have it written down."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import document_key
from vllm_dare.pool.build import Corpus
from vllm_dare.pool.documents import read_documents
from vllm_dare.pool.drop import wait_for_followers
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_keeper import frozen_share
from vllm_dare.pool.live_orders import give_order, has_followers
from vllm_dare.pool.live_store import LIVE_DIRECTORY, LiveStore, prepare_live
from vllm_dare.pool.lock import locked
from vllm_dare.pool.manifest import check_is_pool, is_pool
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.rows import BadRows
from vllm_dare.pool.segment import Provenance
from vllm_dare.pool.tokenizer import load_tokenizer, tokenizer_info


@dataclass(frozen=True)
class AddReport:
    """What became of documents.

    Attributes:
        num_documents: how many draft now; num_tokens: how long they are.
        num_known: how many their group had already.
        num_empty: how many have no tokens.
        is_learned: whether an engine learns into the pool, so that they draft within a second or two; else
            they do once one is started that learns.
    """

    num_documents: int
    num_tokens: int
    num_known: int
    num_empty: int
    is_learned: bool


def add_documents(
    directory: Path,
    paths: Sequence[Path],
    *,
    max_tokens: int,
    tokenizer: str | None = None,
    provenance: Provenance = "external",
    bad_rows: BadRows | None = None,
) -> AddReport:
    """Add documents to what engines have learned into a pool, at the cost of their length alone.

    Args:
        directory: the pool; what is in it stays as it is, `refresh_pool` joins the two.
        paths: see `read_documents`; groups and users are found as in `build_pool`.
        max_tokens: see `vllm_dare.config.LiveConfig`; what was learned the longest ago makes room.
        tokenizer: the pool's, see `load_tokenizer`; None if all documents hold token_ids.
        provenance: how the text was written.
        bad_rows: what to do with a document that cannot be used; None stops at the first.

    Raises:
        PoolError: the pool, the tokenizer or a document cannot be used, or the disk cannot be written to.
    """
    encoder = None if tokenizer is None else load_tokenizer(tokenizer)
    with RetrievalPool.open(directory) as pool:
        if encoder is not None and tokenizer is not None:
            pool.check_tokenizer(tokenizer, tokenizer_info(encoder, tokenizer).fingerprint)
        has_global = bool(pool.manifest.global_segments)
        corpus = Corpus(pool.tokenizer, has_global, bad_rows or BadRows(), assigned=pool.assignments)
        corpus.add_all(read_documents(paths, corpus.bad_rows), encoder)
        info = pool.tokenizer
    documents = [
        LiveDocument(entry.token_ids, entry.group, provenance, document_key(kinds, entity_id))
        for (kinds, entity_id, _), entry in corpus.entries.items()
    ]
    if not documents:
        raise PoolError("There is no document with text to add; check the input files.")
    live = prepare_live(directory, info, verify=False)
    store = LiveStore(live, info, has_global=has_global, max_tokens=frozen_share(max_tokens))
    try:
        store.freeze(documents)
    except OSError as error:
        raise PoolError(f"Cannot write to {live} ({error.strerror}); check permissions and space.") from None
    return AddReport(
        num_documents=len(documents) - store.num_known,
        num_tokens=sum(len(document.tokens) for document in documents),
        num_known=store.num_known,
        num_empty=corpus.num_empty,
        is_learned=has_followers(live),
    )


def flush_learned(directory: Path, *, wait_seconds: float) -> None:
    """Have all engines that learn into a pool write down what is only in their memory.

    Args:
        directory: the pool.
        wait_seconds: how long to wait for them.

    Raises:
        PoolError: nobody learns into the pool, or an engine has not done so in time.
    """
    check_is_pool(directory)
    live = directory / LIVE_DIRECTORY
    if not is_pool(live) or not has_followers(live):
        raise PoolError(f"No engine learns into {directory} now, so that there is nothing to write down.")
    with locked(live):
        order = give_order(live)
    if not wait_for_followers(live, order, wait_seconds):
        raise PoolError(
            f"After {wait_seconds:g} seconds an engine that learns into {directory} has not written down "
            "what it has in memory: see its log; its disk may be full."
        )
