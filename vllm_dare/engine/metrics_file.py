"""The numbers that an engine shows on `/metrics`, in a small mapped file.

Drafts are made in the worker, `/metrics` is answered by API servers, other processes, of which there may be
several. The worker writes numbers where they lie; whoever answers reads them. A number is eight aligned
bytes, which a reader sees either before or after a write.
"""

import json
import mmap
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

SUFFIX = ".metrics"
# Groups that have a label of their own; all further ones share the last, so that a pool of a hundred thousand
# groups makes no hundred thousand time series.
MAX_GROUPS = 50
OTHER_GROUPS = "(others)"
NO_GROUP = "(none)"
MAX_POSITIONS = 128  # the most drafts that vLLM verifies a step
_NAME_BYTES = 128
_GROUP_SLOTS = MAX_GROUPS + 2

SOURCES = ("own", "group", "global", "live")
ERRORS = ("draft", "request", "sources", "reload", "store")
_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_LENGTHS = (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True)
class Metric:
    """One metric, by Prometheus' conventions.

    Attributes:
        name: without the prefix `vllm_dare_` and the suffix `_total` of counters.
        kind, help: as Prometheus has them.
        label: the label that its values have; "group" has those that `MetricsFile.group_slot` has given.
        values: the label's values.
        bounds: of a histogram, the upper bounds of its buckets but for the last, which has none.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """How many numbers it takes: a histogram's buckets and its sum, else one for each label value."""
        if self.kind == "histogram":
            return len(self.bounds) + 2
        if self.label == "group":
            return _GROUP_SLOTS
        return max(1, len(self.values))


_POSITIONS = tuple(map(str, range(MAX_POSITIONS)))
METRICS = (
    Metric("drafts", "counter", "Chains of draft tokens that were verified."),
    Metric("draft_tokens", "counter", "Draft tokens that were verified, by source.", "source", SOURCES),
    Metric("accepted_tokens", "counter", "Draft tokens that were accepted, by source.", "source", SOURCES),
    Metric(
        "accepted_tokens_per_position",
        "counter",
        "Draft tokens that were accepted, by place in the chain.",
        "position",
        _POSITIONS,
    ),
    Metric("relaxed_tokens", "counter", "Draft tokens that only a relaxed rule has kept."),
    Metric("group_draft_tokens", "counter", "Draft tokens that were verified, by group.", "group"),
    Metric("group_accepted_tokens", "counter", "Draft tokens that were accepted, by group.", "group"),
    Metric("chain_tokens", "histogram", "Draft tokens sent for a request and step.", bounds=_LENGTHS),
    Metric(
        "match_tokens",
        "histogram",
        "Length of the longest context that a chain's first token was found after.",
        bounds=_LENGTHS,
    ),
    Metric("look_up_seconds", "histogram", "Time to draft for a whole batch.", bounds=_SECONDS),
    Metric("resting_steps", "counter", "Steps in which the draft budget sent nothing, unasked."),
    Metric("errors", "counter", "Failures that cost speed, not requests.", "kind", ERRORS),
    Metric("pool_tokens", "gauge", "Tokens in the pool's segments; one in a group and global counts twice."),
    Metric("pool_segments", "gauge", "Segment files of the pool."),
    Metric("pool_bytes", "gauge", "Size of the pool's segment files."),
    Metric("pool_groups", "gauge", "Groups of the pool that have text."),
    Metric("pool_created_timestamp_seconds", "gauge", "When the pool was built."),
    Metric("pool_reloads", "counter", "Newer versions of the pool that were taken up while serving."),
    Metric("live_tokens", "gauge", "Tokens learned while serving that draft now, each counted once."),
    Metric("live_evicted_tokens", "counter", "Tokens learned while serving that gave way to newer ones."),
)
_OFFSETS = dict(
    zip(
        (metric.name for metric in METRICS),
        np.cumsum([0, *(metric.size for metric in METRICS)])[:-1].tolist(),
        strict=True,
    )
)
_BY_NAME = {metric.name: metric for metric in METRICS}
_NUM_NUMBERS = sum(metric.size for metric in METRICS)
# The first word: files of another version's layout are not read. The second: when the file was made, in ns.
_HEADER_BYTES = 16
_LAYOUT = zlib.crc32(json.dumps([vars(metric) for metric in METRICS]).encode())
_NAMES_OFFSET = _HEADER_BYTES + 8 * _NUM_NUMBERS
_NUM_BYTES = _NAMES_OFFSET + _NAME_BYTES * _GROUP_SLOTS


class MetricsFile:
    """One engine's numbers; `create` makes a file to write, `read` one to look at.

    Attributes:
        path: the file.
        created: when it was made, in nanoseconds since 1970.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path = path
        self._numbers = np.frombuffer(memory, np.float64, _NUM_NUMBERS, offset=_HEADER_BYTES)
        self.created = int.from_bytes(memory[8:_HEADER_BYTES], "little")
        names = np.frombuffer(memory, np.uint8, offset=_NAMES_OFFSET)
        self._names = names.reshape(_GROUP_SLOTS, _NAME_BYTES)
        self._slots: dict[str | None, int] = {None: MAX_GROUPS + 1}  # of None and those with their own label
        self._labels = {"", OTHER_GROUPS, NO_GROUP}  # those nobody else may have

    @classmethod
    def create(cls, directory: Path, engine: int) -> "MetricsFile":
        """A file of zeros for an engine, named after its number and this process.

        Servers that one process has started share its directory, and their engines may have the same number.

        Args:
            directory: where to; must exist.
            engine: the number that vLLM's own metrics call the engine by.

        Raises:
            OSError: it cannot be written.
        """
        path = directory / f"{engine}-{os.getpid()}{SUFFIX}"
        temporary = directory / f".{engine}-{os.getpid()}.tmp"
        header = _LAYOUT.to_bytes(8, "little") + time.time_ns().to_bytes(8, "little")
        temporary.write_bytes(header + bytes(_NUM_BYTES - _HEADER_BYTES))
        with temporary.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), _NUM_BYTES)
        os.replace(temporary, path)
        found = cls(path, memory)
        found._name_slot(MAX_GROUPS, OTHER_GROUPS)
        found._name_slot(MAX_GROUPS + 1, NO_GROUP)
        return found

    @classmethod
    def read(cls, path: Path) -> "MetricsFile | None":
        """The numbers as they are at this moment; None for a file that is gone or of another layout."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if len(content) != _NUM_BYTES or int.from_bytes(content[:8], "little") != _LAYOUT:
            return None
        memory = mmap.mmap(-1, _NUM_BYTES)
        memory[:] = content
        return cls(path, memory)

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """A metric's numbers, float64[size], see `Metric.size`: what is written there is shown."""
        offset = _OFFSETS[name]
        return self._numbers[offset : offset + _BY_NAME[name].size]

    def add(self, name: str, value: float = 1.0, label: str | None = None) -> None:
        """Add to a counter, or to its number of a label value."""
        metric = _BY_NAME[name]
        self.numbers(name)[0 if label is None else metric.values.index(label)] += value

    def set(self, name: str, value: float) -> None:
        """Set a gauge, or a counter that is kept elsewhere."""
        self.numbers(name)[0] = value

    def bounds(self, name: str) -> npt.NDArray[np.float64]:
        """The upper bounds of a histogram's buckets but for the last; its numbers are the buckets, each with
        the values up to its bound that are in none before, and the values' sum.
        """
        return np.array(_BY_NAME[name].bounds)

    def group_slot(self, group: str | None) -> int:
        """Which number of a metric by group is a group's; the first ones to come get their own.

        A group whose label, the first 128 bytes of its name, is another one's already has none: Prometheus
        refuses metrics with the same labels twice.
        """
        slot = self._slots.get(group)
        if slot is None:
            slot, encoded = len(self._slots) - 1, _encoded(str(group))
            if slot >= MAX_GROUPS or _label(encoded) in self._labels:
                return MAX_GROUPS
            self._slots[group] = slot
            self._labels.add(_label(encoded))
            self._name_slot(slot, str(group))
        return slot

    def group_names(self) -> list[str]:
        """The name of each slot, "" for one that nobody has."""
        return [_label(bytes(row)) for row in self._names]

    def remove(self) -> None:
        """The engine is over: nobody is to be shown its numbers."""
        self.path.unlink(missing_ok=True)

    def _name_slot(self, slot: int, name: str) -> None:
        encoded = _encoded(name)
        self._names[slot, : len(encoded)] = np.frombuffer(encoded, np.uint8)


def _encoded(name: str) -> bytes:
    return name.encode(errors="replace")[:_NAME_BYTES]


def _label(encoded: bytes) -> str:
    return encoded.rstrip(b"\0").decode(errors="replace")
