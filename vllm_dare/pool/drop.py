"""Removing documents from a pool, and from what engines learned into it."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_dare.errors import PoolError
from vllm_dare.pool.files import sync_directory
from vllm_dare.pool.live_store import LIVE_DIRECTORY, locked
from vllm_dare.pool.lock import changing
from vllm_dare.pool.manifest import (
    SEGMENTS_DIRECTORY,
    Manifest,
    SegmentInfo,
    check_is_pool,
    is_pool,
    read_manifest,
    write_manifest,
)
from vllm_dare.pool.segment import PoolDocument, Segment, write_segment
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.pool.writer import remove_unread


@dataclass(frozen=True)
class DropReport:
    """What was removed.

    Attributes:
        num_documents: documents, or passages of them; one that was in a group and global counts twice.
        num_segments: files that were written anew, or were left out.
        num_files: old files that were removed; they may be of an earlier call.
        is_read: whether somebody still reads old files, so that they are there until the pool is next changed
            or `drop_documents` is called again.
    """

    num_documents: int
    num_segments: int
    num_files: int
    is_read: bool


def drop_documents(directory: Path, keys: Collection[int], whose: str) -> DropReport:
    """Remove the documents with certain keys from a pool, and from ``live`` in it.

    Only segments that hold such documents are written anew. Killed at any moment, this leaves each of the two
    as it was or without the documents. Assignments, blend and pivots stay: they hold no text.

    Args:
        directory: the pool.
        keys: see `vllm_dare.pool.assignments.document_key`.
        whose: for the message, such as ``"user '42'"``.

    Raises:
        PoolError: there is no such document, the pool is damaged, or another process is changing it.
    """
    check_is_pool(directory)
    wanted = np.array(sorted(keys), np.uint64)

    def is_wanted(segment: Segment) -> np.ndarray:
        return np.isin(segment.document_keys, wanted)

    with changing(directory):
        reports = [_drop(directory, is_wanted)]
    live = directory / LIVE_DIRECTORY
    if is_pool(live):
        with locked(live):
            reports.append(_drop(live, is_wanted))
    report = DropReport(
        sum(one.num_documents for one in reports),
        sum(one.num_segments for one in reports),
        sum(one.num_files for one in reports),
        any(one.is_read for one in reports),
    )
    if not report.num_documents and report.is_read:
        raise PoolError(
            f"{directory} has no document of {whose}, but somebody still reads files of an earlier version, "
            "which may hold some; run this again once all engines have taken up the present one."
        )
    if not report.num_documents and not report.num_files:
        raise PoolError(
            f"{directory} has no document of {whose}; check the id (--id finds documents that name no "
            "user or item and whose group does not begin with users/ or items/)."
        )
    return report


def forget_learned(live: Path, documents: Iterable[PoolDocument]) -> None:
    """Remove documents from a pool's ``live``: they have become part of the pool itself."""
    taken = {(document.key, document.tokens.tobytes()) for document in documents}

    def is_taken(segment: Segment) -> np.ndarray:
        found = [(document.key, document.tokens.tobytes()) in taken for document in segment.keyed_documents()]
        return np.array(found, np.bool_)

    with locked(live):
        _drop(live, is_taken)


def _drop(directory: Path, is_gone: Callable[[Segment], np.ndarray]) -> DropReport:
    """Remove from one directory, which nobody else is changing.

    Args:
        directory: the pool.
        is_gone: bool[documents] of a segment, those that go.
    """
    manifest = read_manifest(directory)
    changed: dict[str, tuple[str, SegmentInfo] | None] = {}
    num_documents = 0
    for name in manifest.segments:
        segment = Segment.open(directory / SEGMENTS_DIRECTORY / f"{name}{SUFFIX}")
        found = is_gone(segment)
        if found.any():
            num_documents += int(found.sum())
            changed[name] = _written_without(segment, found, manifest, directory)
    if changed:
        sync_directory(directory / SEGMENTS_DIRECTORY)
        write_manifest(directory, _with_changes(manifest, changed))
    removed = remove_unread(directory)
    return DropReport(num_documents, len(changed), removed or 0, is_read=removed is None)


def _written_without(
    segment: Segment, found: np.ndarray, manifest: Manifest, directory: Path
) -> tuple[str, SegmentInfo] | None:
    """The segment that takes another's place; None if nothing is left for a group."""
    segment.verify_checksum()  # or damage would get a checksum of its own in the new segment
    left = [document for document, gone in zip(segment.keyed_documents(), found, strict=True) if not gone]
    if (
        not left and segment.name not in manifest.global_segments
    ):  # an empty one says that there is a global one
        return None
    written = write_segment(
        directory / SEGMENTS_DIRECTORY,
        [document.tokens for document in left],
        keys=[document.key for document in left],
        tokenizer=manifest.tokenizer,
        provenance=segment.header.provenance,
        model=segment.header.model,
    )
    header = written.header
    info = SegmentInfo(header.num_documents, header.num_tokens, written.num_bytes, header.provenance)
    return written.name, info


def _with_changes(manifest: Manifest, changed: dict[str, tuple[str, SegmentInfo] | None]) -> Manifest:
    """The manifest with other segments in the places of those that changed."""
    entries = {name: changed.get(name, (name, info)) for name, info in manifest.segments.items()}

    def names(before: list[str], least: int) -> list[str]:
        found = [entry for name in before if (entry := entries[name]) is not None]
        return [name for name, info in found if info.num_documents >= least]

    groups = {group: left for group, before in manifest.groups.items() if (left := names(before, 1))}
    return Manifest(
        tokenizer=manifest.tokenizer,
        groups=groups,
        global_segments=names(manifest.global_segments, 0),
        segments=dict(entry for entry in entries.values() if entry is not None),
        assignments=manifest.assignments,
        routers=manifest.routers,
        blend=manifest.blend,
        pivots=manifest.pivots,
        created_at=manifest.created_at,
    )
