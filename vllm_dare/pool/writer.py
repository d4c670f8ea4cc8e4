"""Putting a pool on disk: whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import write_hashed_assignments
from vllm_dare.pool.files import sync, temporary_file
from vllm_dare.pool.lock import ReadLock, changing, has_older_readers
from vllm_dare.pool.manifest import (
    MANIFEST_NAME,
    SEGMENTS_DIRECTORY,
    Manifest,
    SegmentInfo,
    is_pool,
    read_manifest,
    write_manifest,
)
from vllm_dare.pool.pivots import encode, find_pivots
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument, Provenance, write_segment
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.pool.threads import run_all
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.routing.router_file import RouterFile, latest_of_each_kind

MAX_SEGMENT_TOKENS = 256 * 2**20

Documents = Sequence[PoolDocument]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PoolContent:
    """What goes into a pool.

    Attributes:
        tokenizer: the tokenizer of the documents.
        groups: group name to its documents, the oldest first.
        global_documents: the documents of the global segment, the oldest first; None leaves it out.
        assignments: (hash of an id, group name), see `entity_hash`; None leaves the table out.
        provenance: how the text was written.
        model: name of the model that wrote it.
        routers: what turns histories and attributes into groups; of two of a kind the later one counts.
        blend, pivots: see `Manifest`; None finds them from these documents.
    """

    tokenizer: TokenizerInfo
    groups: Mapping[str, Documents]
    global_documents: Documents | None
    assignments: Iterable[tuple[int, str]] | None
    provenance: Provenance
    model: str | None
    routers: Sequence[RouterFile] = ()
    blend: str | None = None
    pivots: str | None = None


@dataclass(frozen=True)
class SegmentPart:
    """The documents of one segment.

    Attributes:
        group: name of its group; None for the global segment.
        documents: what it holds.
    """

    group: str | None
    documents: Documents

    @property
    def num_tokens(self) -> int:
        return sum(len(document.tokens) for document in self.documents)


Written = list[tuple[str, SegmentInfo]]
WriteSegments = Callable[[PoolContent, Sequence[SegmentPart], Path, Progress | None], Written]


def write_pool(
    content: PoolContent,
    output: Path,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    max_segment_tokens: int = MAX_SEGMENT_TOKENS,
    write_segments: WriteSegments | None = None,
) -> Manifest:
    """Write a pool directory; if that fails half-way, ``output`` is as it was before.

    Args:
        content: what to write.
        output: the pool directory; its parents are made.
        overwrite: whether an existing pool, or an empty directory, may be replaced.
        workers: how many threads; by default one for each usable core.
        progress: called with the number of tokens sorted, and in all, after each segment.
        max_segment_tokens: a group or global segment of more is split; a single document never is.
        write_segments: writes each part into a directory and gives its segment's name and facts; by default
            threads of this process do. Only this looks at the documents' tokens.

    Raises:
        PoolError: ``output`` exists and may not be replaced, or cannot be written, or another process is
            changing it, or a router is damaged.
    """
    check_output(output, overwrite)
    with changing(output) if is_pool(output) else nullcontext():
        return replace_pool(
            content,
            output,
            workers=workers,
            progress=progress,
            max_segment_tokens=max_segment_tokens,
            write_segments=write_segments,
        )


def replace_pool(
    content: PoolContent,
    output: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    max_segment_tokens: int = MAX_SEGMENT_TOKENS,
    write_segments: WriteSegments | None = None,
) -> Manifest:
    """`write_pool` for who has checked ``output`` and, where it is a pool, is `changing` it."""
    try:
        with _staging(output) as directory:
            write = write_segments or partial(_write_segments, workers=workers)
            manifest = _write_files(content, directory, write, progress, max_segment_tokens)
            learned = {
                "blend": content.blend or _fit(directory, manifest),
                "pivots": _pivots(directory, manifest) if content.pivots is None else content.pivots,
            }
            manifest = manifest.model_copy(update=learned)
            write_manifest(directory, manifest)
    except OSError as error:
        reason = error.strerror or error
        raise PoolError(f"Cannot write the pool {output} ({reason}); check permissions and space.") from None
    return manifest


def _fit(directory: Path, manifest: Manifest) -> str | None:
    from vllm_dare.drafting.fit import fit_blend  # with numba, which not every command needs

    with _opened(directory, manifest) as pool:
        blend = fit_blend(pool)
    return None if blend is None else blend.encode()


def _pivots(directory: Path, manifest: Manifest) -> str | None:
    with _opened(directory, manifest) as pool:
        segments = pool.global_segments()
        if not segments:
            segments = tuple(chain.from_iterable(map(pool.group_segments, manifest.groups)))
        documents = [document for segment in segments for document in segment.documents()]
        if len(documents) < 2:  # nothing is known of wording, which is not to say that all is
            return None
        return encode(find_pivots(documents, manifest.tokenizer.vocab_size))


def _opened(directory: Path, manifest: Manifest) -> RetrievalPool:
    """What has been written so far."""
    return RetrievalPool(directory, manifest, ReadLock(directory, 0))


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse an ``output`` that must not be written to.

    Raises:
        PoolError: it exists and ``overwrite`` is not set, or it is something else than a pool.
    """
    if not output.exists():
        return
    if not overwrite:
        raise PoolError(
            f"{output} exists already; choose another output (only `pool build --overwrite` replaces a pool)."
        )
    if not is_pool(output) and not (output.is_dir() and not any(output.iterdir())):
        raise PoolError(f"{output} exists and is not a pool; choose another output.")


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A directory to write into; once the block ends, ``output`` is a pool of what was written."""
    if output.exists():
        with _replacing_content(output):
            yield output
        return
    staging = output.absolute().parent / f".{output.absolute().name}.{uuid.uuid4().hex}.tmp"
    try:
        (staging / SEGMENTS_DIRECTORY).mkdir(parents=True)
        yield staging
        os.rename(staging, output)
        sync(staging.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _replacing_content(output: Path) -> Iterator[None]:
    """Add files to a pool, whose manifest the block replaces last; then remove what no longer belongs to it.

    The content of the directory cannot be exchanged as a whole, but every file is named after its content, so
    that the old and the new ones can lie side by side until the manifest says which count. A reader of the
    old pool goes on reading its files; they are removed with the next change after it has ended or moved on.
    """
    (output / SEGMENTS_DIRECTORY).mkdir(exist_ok=True)
    remove_unread(output)  # what readers of the version before last held, who have moved on since
    try:
        yield
    finally:
        remove_unread(output)


def remove_unread(output: Path) -> int | None:
    """Remove the files that a pool's manifest does not name, unless somebody reads an older version.

    Nobody may be adding files at the same time.

    Returns:
        How many files went; None if they are still read.
    """
    if has_older_readers(output):
        return None
    manifest = read_manifest(output) if is_pool(output) else None
    segments = {f"{name}{SUFFIX}" for name in manifest.segments} if manifest else set()
    files = {SEGMENTS_DIRECTORY, MANIFEST_NAME}
    if manifest is not None:
        files.update(filter(None, (manifest.assignments, *manifest.routers)))
    return _keep_only(output / SEGMENTS_DIRECTORY, segments) + _keep_only(output, files)


def _keep_only(directory: Path, names: Collection[str]) -> int:
    """Remove the pool's own kinds of files, so that a README somebody put there stays."""
    others = [path for path in directory.iterdir() if path.name not in names]
    removed = [path for path in others if path.suffix in (SUFFIX, ".tmp")]
    for path in removed:
        path.unlink()
    return len(removed)


def _write_files(
    content: PoolContent, directory: Path, write: WriteSegments, progress: Progress | None, max_tokens: int
) -> Manifest:
    # The global segment takes longest, so it goes first.
    overall = [] if content.global_documents is None else [(None, content.global_documents)]
    by_group: list[tuple[str | None, Documents]] = [*overall, *content.groups.items()]
    parts = [
        SegmentPart(group, part) for group, documents in by_group for part in _split(documents, max_tokens)
    ]
    segments = write(content, parts, directory / SEGMENTS_DIRECTORY, progress)
    sync(directory / SEGMENTS_DIRECTORY)
    groups: dict[str | None, list[str]] = {group: [] for group, _ in by_group}
    for part, (name, _) in zip(parts, segments, strict=True):
        groups[part.group].append(name)
    global_segments = groups.pop(None, [])
    assignments = None
    if content.assignments is not None:
        assignments = write_hashed_assignments(directory, content.assignments).name
    return Manifest(
        tokenizer=content.tokenizer,
        groups={str(group): names for group, names in groups.items()},
        global_segments=global_segments,
        segments=dict(segments),
        assignments=assignments,
        routers=[_copy(router, directory) for router in latest_of_each_kind(content.routers)],
    )


def _copy(router: RouterFile, directory: Path) -> str:
    """Put a router into ``directory``, once it has been checked; its name."""
    router.verify()
    with temporary_file(directory) as file, router.path.open("rb") as source:
        shutil.copyfileobj(source, file)
    os.replace(file.name, directory / router.path.name)
    return router.path.name


def _split(documents: Documents, max_tokens: int) -> Iterator[Documents]:
    """Runs of documents of at most ``max_tokens`` tokens, or of one document that is longer; at least one."""
    part: list[PoolDocument] = []
    num_tokens = 0
    for document in documents:
        if part and num_tokens + len(document.tokens) > max_tokens:
            yield part
            part, num_tokens = [], 0
        part.append(document)
        num_tokens += len(document.tokens)
    if part or not documents:  # an empty global segment says that there is one
        yield part


def _write_segments(
    content: PoolContent,
    parts: Sequence[SegmentPart],
    directory: Path,
    progress: Progress | None,
    *,
    workers: int | None,
) -> Written:
    """The name and the facts of each part's segment."""
    num_done, num_total = 0, sum(part.num_tokens for part in parts)

    def write(part: SegmentPart) -> tuple[str, SegmentInfo]:
        return write_part(directory, part.documents, content.tokenizer, content.provenance, content.model)

    def done(result: tuple[str, SegmentInfo]) -> None:
        nonlocal num_done
        num_done += result[1].num_tokens
        if progress is not None:
            progress(num_done, num_total)

    return run_all(write, parts, done=done, workers=workers)


def write_part(
    directory: Path, documents: Documents, tokenizer: TokenizerInfo, provenance: Provenance, model: str | None
) -> tuple[str, SegmentInfo]:
    """Write the segment of some documents; its name and its facts."""
    segment = write_segment(
        directory,
        [document.tokens for document in documents],
        keys=[document.key for document in documents],
        tokenizer=tokenizer,
        provenance=provenance,
        model=model,
    )
    return segment.name, SegmentInfo.of(segment)
