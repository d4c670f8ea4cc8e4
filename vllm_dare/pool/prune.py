"""Pruning a pool: a smaller one that drafts nearly as well."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.coverage import choose_passages
from vllm_dare.pool.manifest import Manifest
from vllm_dare.pool.merge import pool_content
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.writer import PoolContent, Progress, check_output, write_pool


@dataclass(frozen=True)
class Budget:
    """How much a pool may hold; exactly one of the two is given.

    Attributes:
        tokens: at least 1.
        share: of the pool's tokens, above 0 and at most 1.
    """

    tokens: int | None = None
    share: float | None = None

    def of(self, num_tokens: int) -> int:
        """The budget in tokens, for a pool of so many."""
        if self.tokens is not None:
            return self.tokens
        assert self.share is not None
        return int(self.share * num_tokens)


@dataclass(frozen=True)
class PruneReport:
    """What was kept.

    Attributes:
        manifest: of the pruned pool.
        num_tokens_before, num_tokens: each token counted once, be it in a group or not.
        emptied: the groups of which nothing was kept.
    """

    manifest: Manifest
    num_tokens_before: int
    num_tokens: int
    emptied: Sequence[str]


def prune_pool(
    directory: Path,
    output: Path,
    budget: Budget,
    *,
    choose_progress: Progress | None = None,
    sort_progress: Progress | None = None,
) -> PruneReport:
    """Write a pool of the passages that add most to what can be drafted, see `vllm_dare.pool.coverage`.

    Groups, assignments, routers, tokenizer, provenance, model, blend and pivots stay; the latter two are
    better known from the whole text. Each passage is a document of its own, with the key of the one that it
    is from.

    Args:
        directory: the pool.
        output: the new pool directory; it is written whole or not at all.
        budget: how many tokens to keep, see `prune_content`.
        choose_progress: called with the number of tokens chosen so far, and to be chosen.
        sort_progress: called with the number of tokens sorted so far, and in all.

    Raises:
        PoolError: the pool cannot be read or is damaged, the budget leaves nothing, or ``output`` exists.
    """
    check_output(output, overwrite=False)
    with RetrievalPool.open(directory) as pool:
        pool.verify_checksums()  # or damage would get a checksum of its own in the new pool
        content = pool_content([pool])
        before = count_tokens(content)
        kept = prune_content(content, budget.of(before), choose_progress)
        if not count_tokens(kept):
            raise PoolError(
                f"Of the {before:,} tokens of {directory} the budget leaves none; give a larger one."
            )
        manifest = write_pool(kept, output, progress=sort_progress)
    emptied = [name for name in content.groups if name not in kept.groups]
    return PruneReport(manifest, before, count_tokens(kept), emptied)


def prune_content(content: PoolContent, budget: int, progress: Progress | None = None) -> PoolContent:
    """The passages of a pool's content that add most to what can be drafted.

    The budget bounds the global segment, and all groups together: a text is in both, as it was before. The
    global segment covers all documents as a whole. A group, which drafts for its own, covers its own
    documents, with the share of the budget that it had of the groups' tokens.

    Args:
        content: what is there.
        budget: tokens.
        progress: called with the number of tokens chosen so far, and to be chosen.
    """
    by_group = num_tokens_of(content.groups.values())
    share = min(budget / max(by_group, 1), 1.0)
    overall = content.global_documents
    total = min(budget, by_group) + (0 if overall is None else min(budget, num_tokens_of([overall])))
    done = 0

    def choose(documents: Sequence[PoolDocument], tokens: int) -> list[PoolDocument]:
        nonlocal done

        def tell(number: int, _: int) -> None:
            if progress is not None:
                progress(min(done + number, total), total)

        kept = _passages(documents, tokens, tell)
        done += num_tokens_of([kept])
        tell(0, 0)
        return kept

    groups = {
        name: choose(documents, int(share * num_tokens_of([documents])))
        for name, documents in content.groups.items()
    }
    return replace(
        content,
        groups={name: documents for name, documents in groups.items() if documents},
        global_documents=None if overall is None else choose(overall, budget),
    )


def count_tokens(content: PoolContent) -> int:
    """The tokens of a pool, each counted once, be it in a group or not."""
    overall = content.global_documents
    return num_tokens_of(content.groups.values() if overall is None else [overall])


def num_tokens_of(parts: Iterable[Sequence[PoolDocument]]) -> int:
    """The tokens of all documents."""
    return sum(len(document.tokens) for part in parts for document in part)


def _passages(documents: Sequence[PoolDocument], budget: int, progress: Progress) -> list[PoolDocument]:
    chosen = choose_passages([document.tokens for document in documents], budget, progress)
    return [
        PoolDocument(documents[number].tokens[begin:end], documents[number].key)
        for number, begin, end in chosen
    ]
