"""Refreshing a pool in place: new documents in, the oldest out, under a budget of tokens."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.build import Corpus
from vllm_dare.pool.documents import read_documents
from vllm_dare.pool.drop import forget_learned
from vllm_dare.pool.live_store import LIVE_DIRECTORY, check_is_not_live
from vllm_dare.pool.lock import changing
from vllm_dare.pool.manifest import Manifest, check_is_pool
from vllm_dare.pool.merge import check_apart, check_tokenizers, least_trusted, pool_content
from vllm_dare.pool.pivots import encode, find_pivots
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.prune import count_tokens, num_tokens_of, prune_content
from vllm_dare.pool.rows import BadRows
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.tokenizer import load_tokenizer, tokenizer_info
from vllm_dare.pool.writer import PoolContent, Progress, replace_pool

# A text of no known id that comes again replaces itself; shorter ones may be the same for many users.
_LEAST_TOKENS = 64

_Identity = tuple[int, int]


@dataclass(frozen=True)
class RefreshReport:
    """What became of a pool.

    Attributes:
        manifest: of the pool as it is now.
        num_tokens_before, num_tokens: each token counted once, be it in a group or not.
        num_new: documents that came in.
        num_replaced: older documents that gave way to a new one of the same id.
        num_dropped: documents that went because they were the oldest; 0 where the pool was pruned instead.
    """

    manifest: Manifest
    num_tokens_before: int
    num_tokens: int
    num_new: int
    num_replaced: int
    num_dropped: int


def refresh_pool(
    directory: Path,
    new: Sequence[Path],
    num_tokens: int,
    *,
    tokenizer: str | None = None,
    prune: bool = False,
    bad_rows: BadRows | None = None,
    sort_progress: Progress | None = None,
) -> RefreshReport:
    """Put new documents into a pool, and keep it within a budget; readers of the old pool go on reading it.

    Killed at any moment, this leaves the old pool or the new one. Documents are in the order of their age:
    those of the pool, of directories in ``new``, of files. What came from the pool's own ``live`` is removed
    there. A document whose id the pool has replaces what is there under that id; of text without an id, the
    same text does. The budget bounds the global segment, and all groups together. The oldest documents go
    first; what goes from the global segment goes from its group. Without a global segment, or where that is
    not enough, each group keeps its share of the budget.

    Args:
        directory: the pool.
        new: files as `read_documents` takes them, and pool directories, such as ``pool/live``.
        num_tokens: the budget.
        tokenizer: the pool's, see `load_tokenizer`; None if all files hold token_ids.
        prune: whether to keep the passages that help drafting most, see `vllm_dare.pool.prune`, instead of
            the newest documents. The blend stays that of the pool.
        bad_rows: what to do with a document that cannot be used; None stops at the first.
        sort_progress: called with the number of tokens sorted so far, and in all.

    Raises:
        PoolError: the pool or a document cannot be used, tokenizers differ, the budget leaves nothing, or
            another process is changing the pool.
    """
    check_is_pool(directory)
    check_is_not_live(directory)
    with changing(directory), ExitStack() as stack:
        with RetrievalPool.open(directory) as pool:  # not open any more when old files are to go
            pool.verify_checksums()  # or damage would get a checksum of its own in the new pool
            old = pool_content([pool])
            old = replace(old, assignments=None if old.assignments is None else list(old.assignments))
            paths = sorted(new, key=lambda path: not path.is_dir())
            additions = list(_additions(pool, paths, tokenizer, bad_rows or BadRows(), stack))
        merged, num_replaced = old, 0
        for addition in additions:
            merged, replaced = joined(merged, addition.content, addition.former_keys)
            num_replaced += replaced
        kept = _pruned(merged, num_tokens, old.blend) if prune else bounded(merged, num_tokens)
        if not count_tokens(kept):
            raise PoolError(f"A budget of {num_tokens:,} tokens leaves no document in {directory}; raise it.")
        manifest = replace_pool(kept, directory, progress=sort_progress)
        for path, addition in zip(paths, additions, strict=True):
            if path.resolve() == (directory / LIVE_DIRECTORY).resolve():
                forget_learned(path, _every_document(addition.content))
    return RefreshReport(
        manifest,
        num_tokens_before=count_tokens(old),
        num_tokens=count_tokens(kept),
        num_new=sum(_num_documents(addition.content) for addition in additions),
        num_replaced=num_replaced,
        num_dropped=0 if prune else _num_documents(merged) - _num_documents(kept),
    )


class _Addition(NamedTuple):
    """What comes in, and the keys under which the pool may have the same ids from before they had a group."""

    content: PoolContent
    former_keys: Collection[int] = ()


def _additions(
    pool: RetrievalPool, new: Sequence[Path], tokenizer: str | None, bad_rows: BadRows, stack: ExitStack
) -> Iterator[_Addition]:
    """The content of each of the new directories and files."""
    encoder = None if tokenizer is None else load_tokenizer(tokenizer)
    if encoder is not None and tokenizer is not None:
        pool.check_tokenizer(tokenizer, tokenizer_info(encoder, tokenizer).fingerprint)
    for path in new:
        if path.is_dir():
            other = stack.enter_context(RetrievalPool.open(path))
            check_tokenizers([pool, other])
            check_apart([pool, other])
            other.verify_checksums()
            yield _Addition(pool_content([other]))
        else:
            has_global = bool(pool.manifest.global_segments)
            corpus = Corpus(pool.tokenizer, has_global, bad_rows, assigned=pool.assignments)
            corpus.add_all(read_documents([path], bad_rows), encoder)
            # The pool has its own assignments already.
            content = replace(corpus.content("external", None), assignments=list(corpus.named_assignments()))
            former = {entity_hash("document", document_id) for *_, document_id in corpus.entries}
            yield _Addition(content, former)


def joined(old: PoolContent, new: PoolContent, former_keys: Collection[int] = ()) -> tuple[PoolContent, int]:
    """The documents of both, without the old ones that new ones replace; and how many those were.

    Args:
        old: what is there.
        new: what comes in.
        former_keys: under which the new documents may be there, too, see `_Addition`.
    """
    keys = {document.key for document in _every_document(new) if document.key}.union(former_keys)
    texts = {_text(document) for document in _every_document(new) if _is_known_by_text(document)}

    def stays(document: PoolDocument) -> bool:
        if document.key:
            return document.key not in keys
        return not (_is_known_by_text(document) and _text(document) in texts)

    names = dict.fromkeys([*old.groups, *new.groups])
    groups = {
        name: [*filter(stays, old.groups.get(name, ())), *new.groups.get(name, ())] for name in sorted(names)
    }
    overall = old.global_documents
    if overall is not None:
        overall = [*filter(stays, overall), *_every_document(new)]
    assignments = None
    if old.assignments is not None or new.assignments is not None:
        assignments = [*(old.assignments or ()), *(new.assignments or ())]
    content = PoolContent(
        tokenizer=old.tokenizer,
        groups={name: documents for name, documents in groups.items() if documents},
        global_documents=overall,
        assignments=assignments,
        provenance=least_trusted({old.provenance, new.provenance}),
        model=old.model if old.model == new.model else None,
        routers=[*old.routers, *new.routers],
    )
    return content, sum(not stays(document) for document in _every_document(old))


def bounded(content: PoolContent, budget: int) -> PoolContent:
    """What is left within the budget once the oldest documents have gone."""
    groups, overall = dict(content.groups), content.global_documents
    if overall is not None:
        overall, gone = _newest(overall, budget)
        groups = _without(groups, gone)
    total = num_tokens_of(groups.values())
    if total > budget:
        shares = {name: budget * num_tokens_of([documents]) // total for name, documents in groups.items()}
        groups = {name: _newest(documents, shares[name])[0] for name, documents in groups.items()}
    kept = {name: documents for name, documents in groups.items() if documents}
    return replace(content, groups=kept, global_documents=overall)


def _newest(
    documents: Sequence[PoolDocument], budget: int
) -> tuple[Sequence[PoolDocument], Sequence[PoolDocument]]:
    """The newest documents that fit, and those before them."""
    first = len(documents)
    while first > 0 and budget >= len(documents[first - 1].tokens):
        first -= 1
        budget -= len(documents[first].tokens)
    return documents[first:], documents[:first]


def _without(
    groups: Mapping[str, Sequence[PoolDocument]], gone: Iterable[PoolDocument]
) -> dict[str, Sequence[PoolDocument]]:
    """The groups without some documents; of equal ones the oldest go."""
    missing: Counter[_Identity] = Counter(map(_identity, gone))

    def stays(document: PoolDocument) -> bool:
        identity = _identity(document)
        missing[identity] -= 1
        return missing[identity] < 0

    return {name: list(filter(stays, documents)) for name, documents in groups.items()}


def _pruned(content: PoolContent, budget: int, blend: str | None) -> PoolContent:
    """What drafts best within the budget; what the whole text says of wording is kept."""
    tokens = [document.tokens for document in _every_document(content)]
    pivots = encode(find_pivots(tokens, content.tokenizer.vocab_size))
    return prune_content(replace(content, blend=blend, pivots=pivots), budget)


def _every_document(content: PoolContent) -> Sequence[PoolDocument]:
    """Each document once, in the order of age as far as it is known."""
    if content.global_documents is not None:
        return content.global_documents
    return list(chain.from_iterable(content.groups.values()))


def _num_documents(content: PoolContent) -> int:
    return len(_every_document(content))


def _identity(document: PoolDocument) -> _Identity:
    return document.key, _text(document)


def _is_known_by_text(document: PoolDocument) -> bool:
    return not document.key and len(document.tokens) >= _LEAST_TOKENS


def _text(document: PoolDocument) -> int:
    return hash(document.tokens.tobytes())
