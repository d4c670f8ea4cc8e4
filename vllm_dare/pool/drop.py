"""Removing documents from a pool, and from what engines learned into it."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vllm_dare.errors import PoolError
from vllm_dare.pool.deletion_proof import DeletionProof, prove_deletion
from vllm_dare.pool.files import sync
from vllm_dare.pool.live_orders import give_order, has_followers, is_followed
from vllm_dare.pool.live_store import LIVE_DIRECTORY, check_is_not_live
from vllm_dare.pool.lock import changing, has_older_readers, has_readers, locked, wait_until
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

_LOOK_SECONDS = 3.0  # engines look for orders every second


@dataclass(frozen=True)
class DropReport:
    """What was removed.

    Attributes:
        num_documents: documents, or passages of them; one that was in a group and global counts twice.
        num_segments: files that were written anew, or were left out.
        num_files: old files that were removed; they may be of an earlier call.
        is_read: whether somebody still reads old files, so that they are there until the pool is next changed
            or this is called again.
        is_learned: whether engines learn into the pool, which were told to forget such text, too.
        is_followed: whether all of them have.
        proof: that none of the text can be drafted from the files there are now.
    """

    num_documents: int
    num_segments: int
    num_files: int
    is_read: bool
    is_learned: bool
    is_followed: bool
    proof: DeletionProof


class _Removal(NamedTuple):
    """What is to go from one directory.

    Attributes:
        manifest: what is left once a group has gone whole.
        masks: of the segments of that, which documents go, bool[documents].
        documents: those that go with their group.
    """

    manifest: Manifest
    masks: dict[str, np.ndarray]
    documents: list[PoolDocument]


class _Removed(NamedTuple):
    """What went from one directory.

    Attributes:
        old, new: the segments that held it, still mapped, and those that took their place.
        kept: the others' files. There may be more than a process may map.
    """

    documents: list[PoolDocument]
    num_segments: int
    num_files: int
    is_read: bool
    old: list[Segment]
    new: list[Segment]
    kept: list[Path]


_Choice = Callable[[Manifest, Callable[[str], Segment]], _Removal]


def drop_documents(
    directory: Path, keys: Collection[int], whose: str, *, wait_seconds: float = 0.0
) -> DropReport:
    """Remove the documents with certain keys from a pool, and from what was learned into it.

    Only segments that hold such documents are written anew. Killed at any moment, this leaves each of the two
    as it was or without the documents. Assignments, blend and pivots stay: they hold no text. Engines that
    learn forget what they have in memory of such text, and what the requests write that are there now.

    Args:
        directory: the pool.
        keys: see `vllm_dare.pool.assignments.document_key`.
        whose: for the message, such as ``"user '42'"``.
        wait_seconds: how long to wait, in all, for another process that is changing the pool, and until
            engines have taken up the new version, so that old files can go.

    Raises:
        PoolError: there is no such document, the pool is damaged, or another process is changing it.
    """
    wanted = np.array(sorted(keys), np.uint64)

    def choose(manifest: Manifest, segment: Callable[[str], Segment]) -> _Removal:
        masks = {name: np.isin(segment(name).document_keys, wanted) for name in manifest.segments}
        return _Removal(manifest, masks, [])

    advice = (
        "check the id (--id finds documents that name no user or item and whose group does not begin with "
        "users/ or items/)"
    )
    return _drop(directory, choose, whose, advice, wait_seconds, keys=keys)


def drop_group(directory: Path, group: str, *, wait_seconds: float = 0.0) -> DropReport:
    """Remove a group's documents from a pool, from its global segment too, and from what was learned into it.

    As `drop_documents`. Assignments to the group stay: what is written for it later is its text again.
    """

    def choose(manifest: Manifest, segment: Callable[[str], Segment]) -> _Removal:
        members = map(segment, manifest.groups.get(group, ()))
        documents = [document for member in members for document in member.keyed_documents()]
        # Of equal documents as many as the group has; the others are another group's.
        left = Counter(map(_identity, documents))

        def goes(document: PoolDocument) -> bool:
            left[_identity(document)] -= 1
            return left[_identity(document)] >= 0

        masks = {
            name: np.array(list(map(goes, segment(name).keyed_documents())), np.bool_)
            for name in manifest.global_segments
        }
        return _Removal(_without_group(manifest, group), masks, documents)

    return _drop(directory, choose, f"the group {group!r}", "check its name", wait_seconds, groups=[group])


def forget_learned(live: Path, documents: Iterable[PoolDocument]) -> None:
    """Remove documents from a pool's ``live``: they have become part of the pool itself."""
    taken = set(map(_identity, documents))

    def choose(manifest: Manifest, segment: Callable[[str], Segment]) -> _Removal:
        masks = {
            name: np.array([_identity(one) in taken for one in segment(name).keyed_documents()], np.bool_)
            for name in manifest.segments
        }
        return _Removal(manifest, masks, [])

    with locked(live):
        _remove(live, choose)


def wait_for_readers(directory: Path, seconds: float) -> bool:
    """Wait, so long at most, until no process reads older files of a pool; whether it is so."""
    live = directory / LIVE_DIRECTORY
    return wait_until(lambda: not has_older_readers(directory) and not has_older_readers(live), seconds)


def wait_for_followers(live: Path, order: int, seconds: float) -> bool:
    """Wait, so long at most, until engines have followed an order, see `give_order`; whether they have."""
    return wait_until(lambda: is_followed(live, order), seconds)


def _drop(
    directory: Path,
    choose: _Choice,
    whose: str,
    advice: str,
    wait_seconds: float,
    *,
    keys: Collection[int] = (),
    groups: Collection[str] = (),
) -> DropReport:
    check_is_pool(directory)
    check_is_not_live(directory)
    deadline = time.monotonic() + wait_seconds
    live = directory / LIVE_DIRECTORY
    has_memory = _write_down(directory, wait_seconds)
    removed, order = [], 0
    if live.is_dir():
        with locked(live):
            order = give_order(live, keys, groups)
            if is_pool(live):
                removed.append(_remove(live, choose))
    with changing(directory, deadline - time.monotonic()):
        removed.append(_remove(directory, choose))
    proof = _proof(removed)
    has_forgotten = wait_for_followers(live, order, deadline - time.monotonic())
    num_files = sum(one.num_files for one in removed)
    is_read = any(one.is_read for one in removed)
    if is_read and wait_for_readers(directory, deadline - time.monotonic()):
        num_files += _remove_old_files(directory)
        is_read = False
    report = DropReport(
        num_documents=sum(len(one.documents) for one in removed),
        num_segments=sum(one.num_segments for one in removed),
        num_files=num_files,
        is_read=is_read,
        is_learned=has_followers(live),
        is_followed=has_forgotten,
        proof=proof,
    )
    _check_something_went(directory, report, has_memory, whose, advice)
    return report


def _write_down(directory: Path, wait_seconds: float) -> bool:
    """Have engines that learn write down what is in their memory, so that it is counted and proved gone.

    Where the directory of what was learned has gone, these engines still draft from it. They see an order
    that is left in a new one.

    Returns:
        Whether text may have been left in the memory of an engine.
    """
    live = directory / LIVE_DIRECTORY
    if not live.is_dir():
        if not has_readers(directory):
            return False
        live.mkdir()
        with locked(live):
            give_order(live)
        wait_until(lambda: has_followers(live), min(wait_seconds, _LOOK_SECONDS))
    if not has_followers(live):
        return False
    with locked(live):
        order = give_order(live)
    return not wait_for_followers(live, order, min(wait_seconds, _LOOK_SECONDS))


def _proof(removed: list[_Removed]) -> DeletionProof:
    proof = prove_deletion(
        [document.tokens for one in removed for document in one.documents],
        [segment for one in removed for segment in one.old],
        [segment for one in removed for segment in one.new],
        _opened(path for one in removed for path in one.kept),
    )
    if proof.num_left:
        raise PoolError(
            f"{proof.num_left:,} of {proof.num_unique:,} runs of words that only the removed text had are "
            "still in the pool's indexes: rebuild the pool from documents without it."
        )
    return proof


def _opened(paths: Iterable[Path]) -> Iterator[Segment]:
    """One after the other; of what is learned, an engine may have joined some in the meantime."""
    for path in paths:
        with suppress(PoolError):
            yield Segment.open(path)


def _remove_old_files(directory: Path) -> int:
    live = directory / LIVE_DIRECTORY
    with changing(directory), locked(live) if is_pool(live) else nullcontext():
        return (remove_unread(directory) or 0) + (remove_unread(live) or 0 if is_pool(live) else 0)


def _check_something_went(
    directory: Path, report: DropReport, has_memory: bool, whose: str, advice: str
) -> None:
    if report.num_documents or has_memory:
        return
    if report.is_read:
        raise PoolError(
            f"{directory} has no document of {whose}, but somebody still reads files of an earlier version, "
            "which may hold some; run this again once all engines have taken up the present one."
        )
    if not report.num_files:
        raise PoolError(f"{directory} has no document of {whose}: it is gone, or was never there; {advice}.")


def _remove(directory: Path, choose: _Choice) -> _Removed:
    """Remove from one directory, which nobody else is changing."""
    manifest = read_manifest(directory)

    def path(name: str) -> Path:
        return directory / SEGMENTS_DIRECTORY / f"{name}{SUFFIX}"

    left, masks, documents = choose(manifest, lambda name: Segment.open(path(name)))
    changed = {name: mask for name, mask in masks.items() if mask.any()}
    old = {name: Segment.open(path(name)) for name in {*changed, *(manifest.segments.keys() - left.segments)}}
    new: dict[str, Segment | None] = {}
    for name, mask in changed.items():
        new[name] = _written_without(old[name], mask, left, directory)
        every = zip(old[name].keyed_documents(), mask, strict=True)
        documents = [*documents, *(document for document, goes in every if goes)]
    if old or left is not manifest:
        sync(directory / SEGMENTS_DIRECTORY)
        left = _with_changes(left, new)
        write_manifest(directory, left)
    removed = remove_unread(directory)
    return _Removed(
        documents,
        num_segments=len(manifest.segments.keys() - left.segments.keys()),
        num_files=removed or 0,
        is_read=removed is None,
        old=list(old.values()),
        new=[segment for segment in new.values() if segment is not None],
        kept=[path(name) for name in left.segments if name in manifest.segments],
    )


def _identity(document: PoolDocument) -> tuple[int, bytes]:
    return document.key, document.tokens.tobytes()


def _without_group(manifest: Manifest, group: str) -> Manifest:
    if group not in manifest.groups:
        return manifest
    groups = {name: segments for name, segments in manifest.groups.items() if name != group}
    used = {name for names in groups.values() for name in names}.union(manifest.global_segments)
    segments = {name: info for name, info in manifest.segments.items() if name in used}
    return manifest.model_copy(update={"groups": groups, "segments": segments})


def _written_without(
    segment: Segment, found: np.ndarray, manifest: Manifest, directory: Path
) -> Segment | None:
    """The segment that takes another's place; None if nothing is left for a group."""
    segment.verify_checksum()  # or damage would get a checksum of its own in the new segment
    left = [document for document, gone in zip(segment.keyed_documents(), found, strict=True) if not gone]
    if (
        not left and segment.name not in manifest.global_segments
    ):  # an empty one says that there is a global one
        return None
    return write_segment(
        directory / SEGMENTS_DIRECTORY,
        [document.tokens for document in left],
        keys=[document.key for document in left],
        tokenizer=manifest.tokenizer,
        provenance=segment.header.provenance,
        model=segment.header.model,
    )


def _with_changes(manifest: Manifest, written: dict[str, Segment | None]) -> Manifest:
    """The manifest with other segments in the places of those that changed."""
    entries: dict[str, tuple[str, SegmentInfo] | None] = dict(
        zip(manifest.segments, manifest.segments.items(), strict=True)
    )
    for name, segment in written.items():
        entries[name] = None if segment is None else (segment.name, SegmentInfo.of(segment))

    def names(before: list[str], least: int) -> list[str]:
        found = [entry for name in before if (entry := entries[name]) is not None]
        return [name for name, info in found if info.num_documents >= least]

    groups = {group: left for group, before in manifest.groups.items() if (left := names(before, 1))}
    return manifest.model_copy(
        update={
            "groups": groups,
            "global_segments": names(manifest.global_segments, 0),
            "segments": dict(entry for entry in entries.values() if entry is not None),
        }
    )
