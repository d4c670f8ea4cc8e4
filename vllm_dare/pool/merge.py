"""Merging pools into one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.manifest import Manifest
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument, Provenance, Segment
from vllm_dare.pool.writer import PoolContent, Progress, check_output, write_pool


def merge_pools(
    inputs: Sequence[Path], output: Path, *, workers: int | None = None, progress: Progress | None = None
) -> Manifest:
    """Merge pools of one tokenizer: the documents of all, sorted again, group by group.

    The result counts as relaxed if any input is, and keeps a provenance or a model name that all agree on.
    Where two pools assign an id to different groups, or have routers of one kind, the later pool counts.

    Args:
        inputs: pool directories.
        output: the new pool directory; it is written whole or not at all.
        workers: how many threads sort; by default one for each usable core.
        progress: called with the number of tokens sorted so far, and in all.

    Raises:
        PoolError: an input cannot be read or is damaged, two have different tokenizers, or ``output`` exists.
    """
    check_output(output, overwrite=False)
    with ExitStack() as stack:
        pools = [stack.enter_context(RetrievalPool.open(path)) for path in inputs]
        check_tokenizers(pools)
        check_apart(pools)
        for pool in pools:
            pool.verify_checksums()  # or damage would get a checksum of its own in the new pool
        return write_pool(pool_content(pools), output, workers=workers, progress=progress)


def check_tokenizers(pools: Sequence[RetrievalPool]) -> None:
    """Refuse pools of different tokenizers.

    Raises:
        PoolError: see the message.
    """
    first = pools[0]
    for other in pools[1:]:
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise PoolError(
                f"Cannot merge {first.directory} (tokenizer {first.tokenizer.name}, "
                f"{first.tokenizer.fingerprint}) with {other.directory} (tokenizer {other.tokenizer.name}, "
                f"{other.tokenizer.fingerprint}); rebuild one with the tokenizer of the other."
            )


def check_apart(pools: Sequence[RetrievalPool]) -> None:
    """Refuse to mix pools whose groups are kept apart with pools that have text for everybody.

    Raises:
        PoolError: names two such.
    """
    filled = [pool for pool in pools if pool.manifest.segments]
    for first, other in pairwise(filled):
        if bool(other.manifest.global_segments) != bool(first.manifest.global_segments):
            shared, apart = (first, other) if first.manifest.global_segments else (other, first)
            raise PoolError(
                f"{apart.directory} keeps its groups apart (it has no global segment), {shared.directory} "
                "does not, so that text of one group would draft for everybody, or text without a group be "
                "lost; build both with `--no-global`, or both without."
            )


def pool_content(pools: Sequence[RetrievalPool]) -> PoolContent:
    """All documents of pools of one tokenizer, in their order; of a single pool, all that it knows."""
    names = sorted({group for pool in pools for group in pool.groups})
    groups = {name: _documents(s for pool in pools for s in pool.group_segments(name)) for name in names}
    has_global = any(pool.manifest.global_segments for pool in pools)
    has_assignments = any(pool.assignments is not None for pool in pools)
    segments = [segment for pool in pools for segment in _all_segments(pool)]
    models = {segment.header.model for segment in segments}
    return PoolContent(
        tokenizer=pools[0].tokenizer,
        groups=groups,
        global_documents=_documents(s for p in pools for s in _every_document(p)) if has_global else None,
        assignments=_assignments(pools) if has_assignments else None,
        provenance=least_trusted({segment.header.provenance for segment in segments}),
        model=models.pop() if len(models) == 1 else None,
        routers=[router for pool in pools for router in pool.routers],
        blend=pools[0].manifest.blend if len(pools) == 1 else None,
        pivots=pools[0].manifest.pivots if len(pools) == 1 else None,
    )


def _documents(segments: Iterable[Segment]) -> list[PoolDocument]:
    return [document for segment in segments for document in segment.keyed_documents()]


def _all_segments(pool: RetrievalPool) -> list[Segment]:
    return [*pool.global_segments(), *(s for group in pool.groups for s in pool.group_segments(group))]


def _every_document(pool: RetrievalPool) -> Sequence[Segment]:
    """Segments that together hold each document once: a pool without global ones has each in a group."""
    return pool.global_segments() or _all_segments(pool)


def _assignments(pools: Sequence[RetrievalPool]) -> Iterator[tuple[int, str]]:
    for pool in pools:
        if pool.assignments is not None:
            yield from pool.assignments.items()


def least_trusted(found: set[Provenance]) -> Provenance:
    """What texts of several provenances count as together."""
    if "relaxed" in found:
        return "relaxed"
    return found.pop() if len(found) == 1 else "external"
