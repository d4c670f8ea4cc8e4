"""Which texts are learned already: a batch that runs again writes the same ones again."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.manifest import Manifest
from vllm_dare.pool.segment import PoolDocument

# Shorter texts may be the same for many users, and how often each was written makes a draft more probable.
_LEAST_TOKENS = 64


class KnownTexts:
    """Tells documents that their group's segments hold; remembers a hash of every document of these.

    Args:
        documents: the documents of a segment, by its name.

    Attributes:
        num_known: how many documents were left out so far.
    """

    def __init__(self, documents: Callable[[str], Iterable[PoolDocument]]) -> None:
        self.num_known = 0
        self._documents = documents
        self._hashes_of: dict[str, frozenset[int]] = {}

    def leave_out(self, documents: Sequence[LiveDocument], manifest: Manifest) -> list[LiveDocument]:
        """The documents that are neither in ``manifest`` nor twice among themselves.

        Raises:
            PoolError: a segment cannot be read.
        """
        segments = manifest.segments
        self._hashes_of = {name: known for name, known in self._hashes_of.items() if name in segments}
        kept: dict[object, LiveDocument] = {}
        for number, document in enumerate(documents):
            if len(document.tokens) < _LEAST_TOKENS:
                kept[number] = document
                continue
            text = _hash(document.tokens)
            names = _names(manifest, document.group)
            if not any(
                segments[name].provenance == document.provenance and text in self._hashes(name)
                for name in names
            ):
                kept.setdefault((document.group, document.provenance, text), document)
        self.num_known += len(documents) - len(kept)
        return list(kept.values())

    def _hashes(self, name: str) -> frozenset[int]:
        if name not in self._hashes_of:
            self._hashes_of[name] = frozenset(_hash(document.tokens) for document in self._documents(name))
        return self._hashes_of[name]


def _names(manifest: Manifest, group: str | None) -> Sequence[str]:
    return manifest.global_segments if group is None else manifest.groups.get(group, ())


def _hash(tokens: np.ndarray) -> int:
    """64 bits: where two texts share them, one is not learned, which does no harm."""
    return hash(tokens.tobytes())
