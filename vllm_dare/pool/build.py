"""Building a pool from documents."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import (
    Assignment,
    Assignments,
    EntityKind,
    document_key,
    entity_hash,
    kinds_of_group,
    write_assignments,
)
from vllm_dare.pool.documents import Document
from vllm_dare.pool.manifest import Manifest
from vllm_dare.pool.rows import BadRows
from vllm_dare.pool.segment import PoolDocument, Provenance
from vllm_dare.pool.tokenizer import TokenizerInfo, load_tokenizer, tokenizer_info
from vllm_dare.pool.writer import (
    MAX_SEGMENT_TOKENS,
    PoolContent,
    Progress,
    WriteSegments,
    check_output,
    write_pool,
)
from vllm_dare.routing.router_file import RouterFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_DOCUMENTS = 1024
# What the document may be about, the id of that, and its own id.
_Key = tuple[tuple[EntityKind, ...], str, str]


@dataclass(frozen=True)
class BuildReport:
    """What became of the documents.

    Attributes:
        manifest: the pool's manifest.
        num_documents: how many are in the pool.
        num_duplicates: how many gave way to a later one of the same id.
        num_empty: how many were left out because they have no tokens.
        num_ambiguous: how many have no group because their id is both a user's and an item's, of different
            groups, and they do not name one.
        mismatch: a sentence saying that the assignments know none of the documents that name no group; None
            if they know one, or nothing was to be looked up.
    """

    manifest: Manifest
    num_documents: int
    num_duplicates: int
    num_empty: int
    num_ambiguous: int
    mismatch: str | None


def build_pool(
    documents: Iterable[Document],
    tokenizer: str,
    output: Path,
    *,
    provenance: Provenance = "external",
    model: str | None = None,
    global_segment: bool = True,
    assignments: Iterable[Assignment] | None = None,
    routers: Sequence[RouterFile] = (),
    overwrite: bool = False,
    bad_rows: BadRows | None = None,
    workers: int | None = None,
    read_progress: Callable[[int], None] | None = None,
    sort_progress: Progress | None = None,
    max_segment_tokens: int = MAX_SEGMENT_TOKENS,
) -> BuildReport:
    """Build a pool: one segment for each group, and one of all documents.

    Of several documents with one id the last one counts. A document is about the user or item that it names,
    or else about that of its own id, which may be both a user's and an item's if their groups begin with
    "users/" and "items/". Every document that names a group assigns whom it is about to that group; one that
    names none goes to the group that ``assignments`` have for whom it is about, or else for its id.

    Args:
        documents: what to put in, as `read_documents` gives them.
        tokenizer: see `load_tokenizer`; must be that of the model that will read the pool.
        output: the pool directory; its parents are made. It is written whole or not at all.
        provenance: whether the text was written under strict or relaxed verification, or elsewhere.
        model: name of the model that wrote it.
        global_segment: whether there is a segment of all documents; without it each needs a group.
        assignments: who belongs to which group; wins over what documents name, for the ids but not for the
            documents.
        routers: what turns histories and attributes into groups; of two of a kind the later one counts.
        overwrite: whether an existing pool may be replaced.
        bad_rows: what to do with a document that cannot be used; None stops at the first.
        workers: how many threads sort; by default one for each usable core.
        read_progress: called with the number of documents read so far.
        sort_progress: called with the number of tokens sorted so far, and in all.
        max_segment_tokens: a segment of more is split.

    Raises:
        PoolError: the documents, the tokenizer or the output cannot be used, no document is left, or none
            names a group and the assignments know none of them.
    """
    check_output(output, overwrite)
    encoder = load_tokenizer(tokenizer)
    return build_encoded(
        encoded(documents, encoder, read_progress),
        tokenizer_info(encoder, tokenizer),
        output,
        provenance=provenance,
        model=model,
        global_segment=global_segment,
        assignments=assignments,
        routers=routers,
        overwrite=overwrite,
        bad_rows=bad_rows,
        workers=workers,
        sort_progress=sort_progress,
        max_segment_tokens=max_segment_tokens,
    )


def build_encoded(
    documents: Iterable[tuple[Document, np.ndarray]],
    tokenizer: TokenizerInfo,
    output: Path,
    *,
    provenance: Provenance = "external",
    model: str | None = None,
    global_segment: bool = True,
    assignments: Iterable[Assignment] | None = None,
    routers: Sequence[RouterFile] = (),
    overwrite: bool = False,
    bad_rows: BadRows | None = None,
    workers: int | None = None,
    sort_progress: Progress | None = None,
    max_segment_tokens: int = MAX_SEGMENT_TOKENS,
    write_segments: WriteSegments | None = None,
) -> BuildReport:
    """`build_pool` of documents with their token ids, int32[length].

    With ``write_segments``, see `write_pool`, these may be anything that has their ``len()`` and ``max()``.
    """
    rows = iter(assignments or ())
    example = next(rows, None)  # for the message: the table keeps hashes only
    corpus = Corpus(
        tokenizer,
        global_segment,
        bad_rows or BadRows(),
        assigned=None if assignments is None else _table(chain([example] if example else [], rows)),
    )
    for document, token_ids in documents:
        corpus.add(document, token_ids)
    if not corpus.entries:
        raise PoolError("There is no document with text to build a pool from; check the input files.")
    mismatch = _mismatch(corpus, example)
    if mismatch is not None and all(entry.group is None for entry in corpus.entries.values()):
        raise PoolError(mismatch)
    manifest = write_pool(
        replace(corpus.content(provenance, model), routers=routers),
        output,
        overwrite=overwrite,
        workers=workers,
        progress=sort_progress,
        max_segment_tokens=max_segment_tokens,
        write_segments=write_segments,
    )
    return BuildReport(
        manifest, len(corpus.entries), corpus.num_duplicates, corpus.num_empty, corpus.num_ambiguous, mismatch
    )


def _mismatch(corpus: "Corpus", example: Assignment | None) -> str | None:
    """See `BuildReport.mismatch`; mostly ids are spelled in another way here than there."""
    without = [key for key, entry in corpus.entries.items() if entry.group is None]
    is_used = corpus.num_ambiguous or any(entry.is_looked_up for entry in corpus.entries.values())
    if corpus.assigned is None or is_used or not without:
        return None
    kinds, entity_id, _ = without[0]
    document = f"{kinds[0]} {entity_id!r}" if len(kinds) == 1 else repr(entity_id)
    assigned = "are empty" if example is None else f"such as {example[0]} {example[1]!r}"
    return (
        f"None of the {len(without):,} documents without a group is in the assignments (documents are such "
        f"as {document}, assignments {assigned}): check that both use the same ids."
    )


def _table(assignments: Iterable[Assignment]) -> Assignments:
    """The assignments as a table: millions of them would take gigabytes as a dictionary."""
    with TemporaryDirectory() as directory:  # removed at once; the table stays mapped
        return Assignments.open(write_assignments(Path(directory), assignments))


def encoded(
    documents: Iterable[Document], tokenizer: "Tokenizer | None", progress: Callable[[int], None] | None
) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document with its token ids, int32[length]."""
    remaining, num_read = iter(documents), 0
    while batch := list(islice(remaining, _BATCH_DOCUMENTS)):
        texts = [document.text or "" for document in batch if document.token_ids is None]
        if texts and tokenizer is None:
            source = next(document.source for document in batch if document.token_ids is None)
            raise PoolError(f"{source} has no token_ids; name the tokenizer of its text with --tokenizer.")
        encodings = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False) if tokenizer else ())
        for document in batch:
            if document.token_ids is not None:
                yield document, document.token_ids
            else:
                yield document, np.array(next(encodings).ids, np.int32)
        num_read += len(batch)
        if progress is not None:
            progress(num_read)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A document: int32[length], its group, and whether it names that itself."""

    token_ids: np.ndarray
    group: str | None
    is_named: bool

    @property
    def is_looked_up(self) -> bool:
        """Whether the assignments say its group."""
        return self.group is not None and not self.is_named


def _subject(document: Document, group: str | None) -> tuple[tuple[EntityKind, ...], str]:
    """What a document in a group may be about, and the id of that."""
    if document.user is not None:
        return ("user",), document.user
    if document.item is not None:
        return ("item",), document.item
    return kinds_of_group(group), document.id


@dataclass
class Corpus:
    """The documents of a pool to be; of several with one id the last one counts.

    Attributes:
        assigned: who belongs to which group, if somebody says so.
        entries: a later document about the same and with the same id replaces an earlier one.
    """

    tokenizer: TokenizerInfo
    global_segment: bool
    bad_rows: BadRows
    assigned: Assignments | None
    entries: dict[_Key, _Entry] = field(default_factory=dict)
    num_duplicates: int = 0
    num_empty: int = 0
    num_ambiguous: int = 0

    def add_all(
        self,
        documents: Iterable[Document],
        tokenizer: "Tokenizer | None",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Take in documents; without a tokenizer, such as have token_ids.

        Raises:
            PoolError: one cannot be used.
        """
        for document, token_ids in encoded(documents, tokenizer, progress):
            self.add(document, token_ids)

    def add(self, document: Document, token_ids: np.ndarray) -> None:
        """Take in a document with its token ids, int32[length].

        Raises:
            PoolError: it cannot be used.
        """
        if not len(token_ids):
            self.num_empty += 1
            return
        group = document.group if document.group is not None else self._assigned_group(document)
        fault = self._fault(group, token_ids)
        if fault is not None:
            self.bad_rows.report(f"{document.source} {fault}.")
            return
        key = (*_subject(document, group), document.id)
        self.num_duplicates += key in self.entries
        self.entries.pop(key, None)  # in a pool, later is newer
        self.entries[key] = _Entry(token_ids, group, is_named=document.group is not None)

    def content(self, provenance: Provenance, model: str | None) -> PoolContent:
        """What goes into the pool."""
        groups: dict[str, list[PoolDocument]] = {}
        overall: list[PoolDocument] = []
        for (kinds, entity_id, _), entry in self.entries.items():
            document = PoolDocument(entry.token_ids, document_key(kinds, entity_id))
            overall.append(document)
            if entry.group is not None:
                groups.setdefault(entry.group, []).append(document)
        has_assignments = bool(groups) or self.assigned is not None
        return PoolContent(
            tokenizer=self.tokenizer,
            groups=dict(sorted(groups.items())),
            global_documents=overall if self.global_segment else None,
            assignments=self._assignments() if has_assignments else None,
            provenance=provenance,
            model=model,
        )

    def named_assignments(self) -> Iterator[tuple[int, str]]:
        """(hash of an id, group) of whom the documents are about that name their group."""
        for (kinds, entity_id, _), entry in self.entries.items():
            if entry.group is not None and entry.is_named:
                yield from ((entity_hash(kind, entity_id), entry.group) for kind in kinds)

    def _assignments(self) -> Iterator[tuple[int, str]]:
        yield from self.named_assignments()
        if self.assigned is not None:
            yield from self.assigned.items()

    def _assigned_group(self, document: Document) -> str | None:
        """The group of whom it is about, or else of its id; None if a user's and an item's differ, as nothing
        tells which.
        """
        if self.assigned is None:
            return None
        kinds, entity_id = _subject(document, None)
        for known_id in dict.fromkeys((entity_id, document.id)):
            found = {self.assigned.group_of(kind, known_id) for kind in kinds} - {None}
            if found:
                self.num_ambiguous += len(found) > 1
                return found.pop() if len(found) == 1 else None
        return None

    def _fault(self, group: str | None, token_ids: np.ndarray) -> str | None:
        if group is None and not self.global_segment:
            return "has no group, so that without a global segment it has no place; give it a group"
        if token_ids.max() >= self.tokenizer.vocab_size:
            return (
                f"has the token id {token_ids.max()}, beyond the vocabulary of {self.tokenizer.name} "
                f"({self.tokenizer.vocab_size} tokens); give the tokenizer that made the ids"
            )
        return None
