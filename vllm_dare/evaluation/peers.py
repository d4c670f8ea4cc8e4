"""Other drafters, on the same texts: ArcticInference's suffix trees and vLLM's prompt n-grams."""

import ctypes
import gc
import importlib.util
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from vllm_dare.drafting.drafter import Origin
from vllm_dare.errors import DareError
from vllm_dare.evaluation.walk import Chain, Session, Text, Tokens
from vllm_dare.pool.kernels import CACHE

_TREE_DEPTH = 48
_NGRAM_MIN, _NGRAM_MAX = 2, 5


@dataclass(frozen=True)
class ArcticSettings:
    """How far ArcticInference may draft.

    Attributes:
        name: for tables.
        factor: drafts for each token of the match.
        offset: drafts in any case.
        min_prob: a chain ends before the first token that survives with less probability.
    """

    name: str
    factor: float
    offset: float
    min_prob: float


# The best that was found on LLM-written user and item knowledge, and what vLLM's suffix decoding uses.
ARCTIC_SETTINGS = (
    ArcticSettings("arctic", factor=4.0, offset=1.0, min_prob=0.0),
    ArcticSettings("arctic, vLLM's limits", factor=1.0, offset=0.0, min_prob=0.1),
)


class ArcticTree:
    """The suffix tree of a pool's documents, as vLLM's suffix decoding would hold it after serving them.

    Attributes:
        resident_bytes: by how much the process grew; None where the system does not tell.

    Raises:
        DareError: arctic-inference is not installed.
    """

    def __init__(self, documents: Sequence[Tokens]) -> None:
        check_arctic()
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        before = resident_bytes()
        self.cache: Any = SuffixDecodingCache(max_tree_depth=_TREE_DEPTH, max_cached_requests=-1)
        self._num_requests = 0
        for document in documents:
            request = self.start(np.empty(0, np.int32))
            self.cache.add_active_response(request, document)
            self.cache.stop_request(request)
        after = resident_bytes()
        self.resident_bytes = None if before is None or after is None else max(after - before, 0)

    def start(self, prompt: Tokens) -> int:
        """Begin a request and return its id."""
        self._num_requests += 1
        self.cache.start_request(self._num_requests, prompt)
        return self._num_requests


def check_arctic() -> None:
    """Refuse to compare with a package that is not there.

    Raises:
        DareError: arctic-inference is not installed.
    """
    if importlib.util.find_spec("arctic_inference") is None:
        raise DareError(
            "The peer `arctic` needs the package arctic-inference; run `pip install 'vllm-dare[peers]'`, or "
            "leave it out of --peers."
        )


class ArcticArm:
    """ArcticInference's `SuffixDecodingCache`.

    Args:
        tree: the pool; it is left as it was after each text unless ``learns``.
        settings: how far it may draft.
        max_drafts: the longest chain.
        learns: whether texts stay in the tree, as in vLLM.
    """

    def __init__(
        self, tree: ArcticTree, settings: ArcticSettings, max_drafts: int, *, learns: bool = False
    ) -> None:
        self.tree = tree
        self.settings = settings
        self.name = settings.name
        self.max_drafts = max_drafts
        self.learns = learns

    def start(self, text: Text) -> Session:
        return _ArcticSession(self, text)


class _ArcticSession:
    def __init__(self, arm: ArcticArm, text: Text) -> None:
        self._arm = arm
        self._text = np.concatenate([text.prompt, text.output])
        self._size = len(text.prompt)
        self._request = arm.tree.start(np.ascontiguousarray(text.prompt))

    def extend(self, tokens: Tokens) -> None:
        self._arm.tree.cache.add_active_response(self._request, np.ascontiguousarray(tokens))
        self._size += len(tokens)

    def draft(self, limit: int) -> list[int]:
        settings = self._arm.settings
        self._found = self._arm.tree.cache.speculate(
            self._request,
            self._text[max(0, self._size - _TREE_DEPTH) : self._size],
            max_spec_tokens=limit,
            max_spec_factor=settings.factor,
            max_spec_offset=settings.offset,
            min_token_prob=settings.min_prob,
        )
        token_ids: list[int] = self._found.token_ids
        return token_ids

    def chain(self) -> Chain:
        found = self._found
        return Chain(
            np.array(found.token_ids, np.int32), np.array(found.probs, np.float32), match=found.match_len
        )

    def close(self) -> None:
        cache = self._arm.tree.cache
        cache.stop_request(self._request)
        if not self._arm.learns:
            cache.evict_cached_response(self._request)


class NgramArm:
    """vLLM's `ngram` method with lengths 2 to 5: what followed the longest match in the request's own text.

    vLLM's function is not called, because importing it takes vLLM and torch along.
    """

    name = "ngram"

    def __init__(self, max_drafts: int) -> None:
        self.max_drafts = max_drafts

    def start(self, text: Text) -> Session:
        return _NgramSession(text)


class _NgramSession:
    def __init__(self, text: Text) -> None:
        self._text = np.concatenate([text.prompt, text.output])
        self._size = len(text.prompt)

    def extend(self, tokens: Tokens) -> None:
        self._size += len(tokens)

    def draft(self, limit: int) -> list[int]:
        start, self._length = longest_ngram(self._text, self._size, _NGRAM_MIN, _NGRAM_MAX)
        self._tokens = self._text[start : min(start + limit, self._size)]
        token_ids: list[int] = self._tokens.tolist()
        return token_ids

    def chain(self) -> Chain:
        tokens = self._tokens
        return Chain(
            tokens, None, np.full(len(tokens), Origin.OWN, np.int8), self._length if len(tokens) else None
        )

    def close(self) -> None:
        pass


@njit(cache=CACHE, nogil=True)
def longest_ngram(text, size, shortest, longest):  # type: ignore[no-untyped-def]
    """Where text[:size]'s last tokens occurred before: the longest such n-gram, the earliest such place.

    Returns:
        (position that follows the place, number of tokens that match); (size, 0) if there is none.
    """
    found, place = 0, size
    for end in range(1, size):
        length = 0
        while length < longest and length < end and text[end - 1 - length] == text[size - 1 - length]:
            length += 1
        if length >= shortest and length > found:
            found, place = length, end
            if found == longest:
                break
    return place, found


def resident_bytes() -> int | None:
    """The process's resident memory, after giving back what is free; None where the system does not tell."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
