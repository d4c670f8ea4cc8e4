"""`RetrievalPool`: a pool directory, opened for reading."""

import os
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from vllm_dare.drafting.blend import Blend
from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import Assignments, EntityKind
from vllm_dare.pool.lock import ReadLock, version_of
from vllm_dare.pool.manifest import SEGMENTS_DIRECTORY, Manifest, check_is_pool, read_manifest
from vllm_dare.pool.mapping import map_in
from vllm_dare.pool.pivots import decode
from vllm_dare.pool.segment import Segment
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.pool.threads import run_all
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.routing.router import Router
from vllm_dare.routing.router_file import RouterFile

_OPEN_ATTEMPTS = 100
_MAX_MAPPED_GROUPS = 16384  # Linux lets a process have 65530 mappings

Progress = Callable[[int, int], None]


class RetrievalPool:
    """The segments of each group, mapped when they are first asked for.

    While it is open, replacing the pool leaves its files in place, so that it stays what it was.

    Attributes:
        directory: the pool directory.
        manifest: what it holds.
    """

    def __init__(self, directory: Path, manifest: Manifest, lock: ReadLock) -> None:
        self.directory = directory
        self.manifest = manifest
        self._lock = lock
        self._groups: dict[str, tuple[Segment, ...]] = {}  # the most recently used, oldest first
        self._global: tuple[Segment, ...] | None = None

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Self:
        """Open a pool by reading its manifest and nothing else.

        Raises:
            PoolError: ``directory`` is not a pool, or its manifest is damaged or of a newer format.
        """
        path = Path(directory).expanduser()
        check_is_pool(path)
        for _ in range(_OPEN_ATTEMPTS):
            lock = ReadLock(path, version_of(path))  # its files stay from now on, if it is still the version
            manifest = read_manifest(path)
            if version_of(path) == lock.version:
                return cls(path, manifest, lock)
            lock.release()
        raise PoolError(f"The pool {path} is being replaced all the time; try again when that has ended.")

    @property
    def tokenizer(self) -> TokenizerInfo:
        """The tokenizer of every token id in the pool."""
        return self.manifest.tokenizer

    @property
    def groups(self) -> Collection[str]:
        """The names of the groups that have text."""
        return self.manifest.groups.keys()

    @cached_property
    def pivots(self) -> npt.NDArray[np.uint64] | None:
        """See `vllm_dare.pool.pivots.find_pivots`; None in a pool that was made without text."""
        return None if self.manifest.pivots is None else decode(self.manifest.pivots)

    @cached_property
    def blend(self) -> Blend:
        """How far the drafter trusts contexts; the default where nothing was fitted."""
        return Blend.default() if self.manifest.blend is None else Blend.decode(self.manifest.blend)

    @cached_property
    def num_tokens(self) -> int:
        """The tokens of all segments; a token that is both in a group and global counts twice."""
        return sum(info.num_tokens for info in self.manifest.segments.values())

    @cached_property
    def num_bytes(self) -> int:
        """The size of all segments."""
        return sum(info.num_bytes for info in self.manifest.segments.values())

    @cached_property
    def assignments(self) -> Assignments | None:
        """Who belongs to which group; None if the pool does not know."""
        name = self.manifest.assignments
        return None if name is None else Assignments.open(self.directory / name)

    @cached_property
    def routers(self) -> tuple[RouterFile, ...]:
        """What turns histories and attributes into groups, at most one of each kind."""
        return tuple(RouterFile.open(self.directory / name) for name in self.manifest.routers)

    @cached_property
    def router(self) -> Router:
        """Says which group serves a request; the group may be one without text.

        Raises:
            PoolError: the assignments or a router cannot be mapped.
        """
        return Router(self.assignments, self.routers)

    def global_segments(self) -> tuple[Segment, ...]:
        """The segments that hold every document; empty if the pool was built without them.

        Raises:
            PoolError: a segment cannot be mapped.
        """
        if self._global is None:
            self._global = tuple(map(self._segment, self.manifest.global_segments))
        return self._global

    def group_segments(self, group: str | None) -> tuple[Segment, ...]:
        """The segments of a group; empty for None and for a group without text.

        Raises:
            PoolError: a segment cannot be mapped.
        """
        if group is None or group not in self.manifest.groups:
            return ()
        segments = self._groups.pop(group, None)
        if segments is None:
            segments = tuple(map(self._segment, self.manifest.groups[group]))
            if len(self._groups) >= _MAX_MAPPED_GROUPS:
                del self._groups[next(iter(self._groups))]
        self._groups[group] = segments
        return segments

    def group_of(self, kind: EntityKind, entity_id: str | int) -> str | None:
        """The group that a user or item was assigned to; None if it is not known."""
        return None if self.assignments is None else self.assignments.group_of(kind, entity_id)

    def check_tokenizer(self, name: str, fingerprint: str) -> None:
        """Refuse a pool of another tokenizer.

        Args:
            name: what the model's tokenizer is called, for the message.
            fingerprint: `vocabulary_fingerprint` of its vocabulary.

        Raises:
            PoolError: the pool's tokenizer has another vocabulary.
        """
        if fingerprint != self.tokenizer.fingerprint:
            raise PoolError(
                f"The pool {self.directory} was built with the tokenizer {self.tokenizer.name} "
                f"({self.tokenizer.fingerprint}) but the model uses {name} ({fingerprint}); "
                f"rebuild the pool with `vllm-dare pool build --tokenizer {name}`."
            )

    def check_files(self) -> None:
        """Open every file of the pool, and compare its header with the manifest.

        Raises:
            PoolError: one is missing, damaged, or not the one that the manifest describes.
        """
        for name in self.manifest.segments:
            self._segment(name)
        _ = self.router

    def prepare(self) -> None:
        """Read now what is otherwise read when it is first asked for, but for the groups' segments.

        Raises:
            PoolError: a segment cannot be mapped.
        """
        self.global_segments()
        _ = self.blend, self.pivots, self.num_tokens, self.num_bytes, self.router

    def map_in(self) -> None:
        """Spare look-ups in the global segments their page faults; reads what is not in memory.

        Raises:
            PoolError: a segment cannot be mapped.
        """
        for segment in self.global_segments():
            map_in(segment.tokens)
            map_in(segment.suffix_array)

    def verify_checksums(self, progress: Progress | None = None, workers: int | None = None) -> None:
        """Read every file and compare its content with its name; about a second a GB and core.

        Args:
            progress: called with the number of bytes done, and in all, after each segment.
            workers: how many threads; by default one for each usable core.

        Raises:
            PoolError: the first file found missing or damaged.
        """
        if self.assignments is not None:
            self.assignments.verify_checksum()
        for router in self.routers:
            router.verify_checksum()
        self._for_each_segment(Segment.verify_checksum, progress, workers)

    def verify(self, progress: Progress | None = None) -> None:
        """Check everything: checksums, token ids, the order of every suffix array, assignments, routers.

        Args:
            progress: called with the number of bytes done, and in all, after each segment.

        Raises:
            PoolError: the first thing found wrong.
        """
        if self.assignments is not None:
            self.assignments.verify()
        for router in self.routers:
            router.verify()
        self._for_each_segment(Segment.verify, progress)

    def close(self) -> None:
        """Forget every segment; each is unmapped once nobody else holds it, and a builder may remove it."""
        self._lock.release()
        self._groups.clear()
        self._global = None
        for mapped in ("assignments", "routers", "router"):
            self.__dict__.pop(mapped, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self, name: str) -> Segment:
        segment = Segment.open(self.directory / SEGMENTS_DIRECTORY / f"{name}{SUFFIX}")
        self._check_described(segment)
        return segment

    def _check_described(self, segment: Segment) -> None:
        info, header = self.manifest.segments[segment.name], segment.header
        described = (info.num_documents, info.num_tokens, info.num_bytes, self.tokenizer.fingerprint)
        found = (header.num_documents, header.num_tokens, segment.num_bytes, header.tokenizer_fingerprint)
        if described != found or header.vocab_size != self.tokenizer.vocab_size:
            raise PoolError(
                f"The segment {segment.path} is not the one that the pool's manifest describes; "
                "rebuild the pool, or copy it again in full."
            )

    def _for_each_segment(
        self, action: Callable[[Segment], None], progress: Progress | None, workers: int | None = None
    ) -> None:
        num_done = 0

        def act(name: str) -> int:
            segment = self._segment(name)
            action(segment)
            return segment.num_bytes

        def done(num_bytes: int) -> None:
            nonlocal num_done
            num_done += num_bytes
            if progress is not None:
                progress(num_done, self.num_bytes)

        run_all(act, self.manifest.segments, done=done, workers=workers)
