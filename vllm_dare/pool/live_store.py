"""The live text on disk: ``<pool>/live``, a pool of its own that several engines add to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.files import check_writable, sync
from vllm_dare.pool.live import MERGE_RATIO, LiveDocument
from vllm_dare.pool.live_known import KnownTexts
from vllm_dare.pool.live_orders import OrderReader
from vllm_dare.pool.lock import locked
from vllm_dare.pool.manifest import (
    SEGMENTS_DIRECTORY,
    Manifest,
    SegmentInfo,
    is_pool,
    manifest_signature,
    read_manifest,
    write_manifest,
)
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument, Provenance, Segment, write_segment
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.pool.writer import PoolContent, remove_unread, write_pool

PassOn = Callable[[Sequence[LiveDocument]], None]

LIVE_DIRECTORY = "live"
_SEALED_SHARE = 8  # a segment grows to this part of `max_tokens`, so that eviction takes little at a time …
_MAX_SEALED_TOKENS = 2**20  # … and to no more than is sorted in a fraction of a second
_MAX_MAPPED_SEGMENTS = 16384  # Linux lets a process have 65530 mappings, and the pool beside it has many
_READ_ATTEMPTS = 10


def check_is_not_live(directory: Path) -> None:
    """Refuse what engines learn into where a pool is to be changed: they would go on as if it were not.

    Raises:
        PoolError: it is the directory ``live`` of a pool.
    """
    path = directory.absolute()
    if path.name == LIVE_DIRECTORY and is_pool(path.parent):
        raise PoolError(
            f"{directory} is what engines have learned into the pool {directory.parent}; give that pool."
        )


class FrozenText:
    """The segments of one manifest, each mapped when it is first asked for.

    Args:
        directory: the live directory.
        manifest: what is in it.
        before: the reader of an earlier manifest, whose mapped segments are kept as far as they still count.
    """

    def __init__(self, directory: Path, manifest: Manifest, before: "FrozenText | None" = None) -> None:
        self.manifest = manifest
        self._directory = directory / SEGMENTS_DIRECTORY
        self._mapped: dict[str, Segment] = {}
        self._read_groups: dict[str, None] = {}  # those somebody has asked for
        if before is not None:
            self._take_over(before)

    @property
    def num_tokens(self) -> int:
        """How many tokens there are; one that is in a group and in everybody's text counts once."""
        return _num_tokens(self.manifest)

    def group_segments(self, group: str | None) -> tuple[Segment, ...]:
        """A group's segments, the oldest first; empty for None and for a group without text.

        Raises:
            PoolError: a file has gone, as when another process has merged it since.
        """
        if group is None or group not in self.manifest.groups:
            return ()
        self._read_groups[group] = None
        return self._segments(self.manifest.groups[group])

    def global_segments(self) -> tuple[Segment, ...]:
        """The segments of everybody's text; PoolError as `group_segments`."""
        return self._segments(self.manifest.global_segments)

    def _segments(self, names: Sequence[str]) -> tuple[Segment, ...]:
        return tuple(self._mapped.get(name) or self._map(name) for name in names)

    def _map(self, name: str) -> Segment:
        if len(self._mapped) >= _MAX_MAPPED_SEGMENTS:
            self._mapped.clear()  # those in use stay mapped by their users
        segment = self._mapped[name] = Segment.open(self._directory / f"{name}{SUFFIX}")
        return segment

    def _take_over(self, before: "FrozenText") -> None:
        """Map here, in the thread that reads manifests, what requests would otherwise wait for."""
        mapped = dict(before._mapped)
        self._mapped = {name: mapped[name] for name in mapped if name in self.manifest.segments}
        self.global_segments()
        for group in list(before._read_groups):
            self.group_segments(group)


class LiveStore:
    """Adds text to ``<pool>/live`` and reads what other processes have added.

    Every change is: lock, read the manifest, write segments under new names, replace the manifest, remove
    what it no longer names. A process that is killed at any moment leaves the old or the new text, whole. A
    group's new text is joined with its last segments that are less than four times as long, so that there are
    few.

    What is kept is bounded: when a freeze brings the groups' text, or everybody's, above ``max_tokens``,
    whole segments go, those first that were written the longest ago.

    Args:
        directory: the live directory; `prepare_live` makes it.
        tokenizer: the tokenizer of every document.
        has_global: whether to keep text for everybody.
        max_tokens: the most tokens kept; a token that is in a group and in everybody's text counts once.
        pass_on: called with the documents that are about to be added, to be kept elsewhere, too.

    Attributes:
        num_evicted: how many tokens this process has dropped to keep within that.
        orders: what others want the engine to do.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer: TokenizerInfo,
        *,
        has_global: bool,
        max_tokens: int,
        pass_on: PassOn = lambda _: None,
    ) -> None:
        self.directory = directory
        self._tokenizer = tokenizer
        self._has_global = has_global
        self._max_tokens = max_tokens
        self._pass_on = pass_on
        self._sealed_tokens = min(max_tokens // _SEALED_SHARE, _MAX_SEALED_TOKENS)
        self._seen: tuple[int, ...] | None = None
        self.num_evicted = 0
        self._known = KnownTexts(lambda name: self._documents([name]))
        self.orders = OrderReader(directory)

    @property
    def num_known(self) -> int:
        """How many documents were not added because their group had them already."""
        return self._known.num_known

    def read(self, before: FrozenText | None = None) -> FrozenText:
        """What is on disk now.

        Raises:
            PoolError: it cannot be read.
        """
        for attempt in range(_READ_ATTEMPTS):
            seen = manifest_signature(self.directory)
            manifest = read_manifest(self.directory)
            try:
                frozen = FrozenText(self.directory, manifest, before)
            except PoolError:  # replaced by another process between the two
                if attempt == _READ_ATTEMPTS - 1:
                    raise
                continue
            self._seen = seen
            return frozen
        raise AssertionError

    def has_changed(self) -> bool:
        """Whether another process has added text since the last `read`; asks the file system, nothing else.

        Raises:
            OSError: the directory has gone.
        """
        return manifest_signature(self.directory) != self._seen

    def nothing(self) -> FrozenText:
        """What to draft from where the directory cannot be read any more, and its text is to be forgotten."""
        empty = Manifest(tokenizer=self._tokenizer, groups={}, global_segments=[], segments={})
        return FrozenText(self.directory, empty)

    def freeze(self, documents: Sequence[LiveDocument]) -> None:
        """Add documents that their group has not yet; once this returns, they survive a crash.

        What an order wants forgotten that has not been followed is left out: whoever removed such text from
        the disk has given the order before.

        Raises:
            OSError: the disk is full, or the directory cannot be written to any more.
            PoolError: what is there is damaged.
        """
        with locked(self.directory):
            try:
                unfollowed = self.orders.unfollowed()
                if unfollowed is not None:
                    documents = [one for one in documents if not unfollowed.covers(one.group, one.key)]
                manifest = read_manifest(self.directory)
                if new := self._known.leave_out(documents, manifest):
                    self._pass_on(new)
                    before = _num_tokens(manifest) + sum(len(document.tokens) for document in new)
                    manifest = self._added(manifest, new)
                    self.num_evicted += before - _num_tokens(manifest)
                    sync(self.directory / SEGMENTS_DIRECTORY)
                    write_manifest(self.directory, manifest)
            finally:
                with suppress(OSError, PoolError):
                    remove_unread(self.directory)

    def _added(self, manifest: Manifest, documents: Sequence[LiveDocument]) -> Manifest:
        groups = {group: list(names) for group, names in manifest.groups.items()}
        overall = list(manifest.global_segments)
        infos = dict(manifest.segments)
        for (group, provenance), texts in self._texts(documents).items():
            names = overall if group is None else groups.setdefault(group, [])
            joined = self._short_segments(names, infos, provenance, sum(len(text.tokens) for text in texts))
            name, info = self._write([*self._documents(joined), *texts], provenance)
            names[:] = [other for other in names if other not in joined] + [name]
            infos.pop(name, None)  # the order of `infos` is that in which they were written
            infos[name] = info
        return self._bounded(manifest, groups, overall, infos)

    def _texts(
        self, documents: Sequence[LiveDocument]
    ) -> dict[tuple[str | None, Provenance], list[PoolDocument]]:
        """The new documents of every (group, provenance), the group None being everybody's."""
        texts: dict[tuple[str | None, Provenance], list[PoolDocument]] = {}
        for tokens, group, provenance, key in documents:
            if group is not None:
                texts.setdefault((group, provenance), []).append(PoolDocument(tokens, key))
            if self._has_global:
                texts.setdefault((None, provenance), []).append(PoolDocument(tokens, key))
        return texts

    def _short_segments(
        self, names: Sequence[str], infos: Mapping[str, SegmentInfo], provenance: Provenance, num_tokens: int
    ) -> list[str]:
        """The last segments of a list that are to be joined with ``num_tokens`` of new text."""
        joined: list[str] = []
        for name in reversed([name for name in names if infos[name].provenance == provenance]):
            length = infos[name].num_tokens
            if length >= MERGE_RATIO * num_tokens or length + num_tokens > self._sealed_tokens:
                break
            joined.insert(0, name)
            num_tokens += length
        return joined

    def _documents(self, names: Iterable[str]) -> Iterator[PoolDocument]:
        for name in names:
            segment = Segment.open(self.directory / SEGMENTS_DIRECTORY / f"{name}{SUFFIX}")
            segment.verify_checksum()  # or damage would get a checksum of its own in the new segment
            yield from segment.keyed_documents()

    def _write(self, documents: list[PoolDocument], provenance: Provenance) -> tuple[str, SegmentInfo]:
        directory = self.directory / SEGMENTS_DIRECTORY
        segment = write_segment(
            directory,
            [document.tokens for document in documents],
            keys=[document.key for document in documents],
            tokenizer=self._tokenizer,
            provenance=provenance,
        )
        return segment.name, SegmentInfo.of(segment)

    def _bounded(
        self,
        manifest: Manifest,
        groups: Mapping[str, list[str]],
        overall: list[str],
        infos: Mapping[str, SegmentInfo],
    ) -> Manifest:
        """The manifest of the newest segments that fit; a group without any is forgotten."""
        kept = self._newest({name for names in groups.values() for name in names}, infos)
        kept_overall = self._newest(set(overall), infos) if self._has_global else set()
        groups = {group: [name for name in names if name in kept] for group, names in groups.items()}
        return Manifest(
            tokenizer=manifest.tokenizer,
            groups={group: names for group, names in groups.items() if names},
            global_segments=[name for name in overall if name in kept_overall],
            segments={name: info for name, info in infos.items() if name in kept | kept_overall},
            created_at=manifest.created_at,
        )

    def _newest(self, names: set[str], infos: Mapping[str, SegmentInfo]) -> set[str]:
        kept: set[str] = set()
        num_tokens = 0
        for name in reversed([name for name in infos if name in names]):
            num_tokens += infos[name].num_tokens
            if num_tokens > self._max_tokens:
                break
            kept.add(name)
        return kept


def _num_tokens(manifest: Manifest) -> int:
    groups = [name for names in manifest.groups.values() for name in names]
    return sum(manifest.segments[name].num_tokens for name in manifest.global_segments or groups)


def prepare_live(pool: Path, tokenizer: TokenizerInfo, *, verify: bool = True) -> Path:
    """Make ``<pool>/live`` where it is missing, and refuse one that cannot be learned into.

    Args:
        pool: the pool directory.
        tokenizer: the model's.
        verify: whether to compare checksums.

    Raises:
        PoolError: it cannot be written to, is damaged, or holds text of another tokenizer.
    """
    directory = pool / LIVE_DIRECTORY
    try:
        (directory / SEGMENTS_DIRECTORY).mkdir(parents=True, exist_ok=True)
        with locked(directory):
            check_writable(directory)
            if not is_pool(directory):
                write_manifest(
                    directory, Manifest(tokenizer=tokenizer, groups={}, global_segments=[], segments={})
                )
            _check(directory, tokenizer, verify)
    except OSError as error:
        raise PoolError(
            f"Cannot write to {directory} ({error.strerror or error}), where the engine is to keep what it "
            "learns; make the pool writable, give a copy that is, or leave out learning (dare.live, --learn)."
        ) from None
    return directory


def prepare_pool(directory: Path, tokenizer: TokenizerInfo) -> bool:
    """Make an empty pool where there is none yet, to learn into from nothing.

    Returns:
        Whether there was none.

    Raises:
        PoolError: something else is there, or it cannot be written.
    """
    if is_pool(directory):
        return False
    content = PoolContent(tokenizer, {}, [], assignments=None, provenance="external", model=None)
    try:
        write_pool(content, directory, overwrite=True)
    except PoolError:
        if not is_pool(directory):  # another process has been quicker
            raise
    return True


def _check(directory: Path, tokenizer: TokenizerInfo, verify: bool) -> None:
    OrderReader(directory)
    with RetrievalPool.open(directory) as pool:
        if pool.tokenizer.fingerprint != tokenizer.fingerprint:
            raise PoolError(
                f"{directory} holds text that was learned with the tokenizer {pool.tokenizer.name} "
                f"({pool.tokenizer.fingerprint}), but the model uses {tokenizer.name} "
                f"({tokenizer.fingerprint}); remove or rename that directory, or use another pool."
            )
        try:
            pool.check_files()
            if verify:
                pool.verify_checksums()
        except PoolError as error:
            raise PoolError(f"{error} Or remove {directory}, to begin learning anew.") from None
