"""The sorted suffixes of documents that are joined by separators."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

SEPARATOR = -1
MAX_LENGTH = 2**31 - 1
_CHUNK = 1 << 22


class SuffixIndex(NamedTuple):
    """Where every suffix of ``tokens``, int32[n], is found.

    Attributes:
        suffix_array: int32[n - num_documents], the start of every suffix that does not start at a separator,
            in lexicographic order with the separator below every token. Suffixes that agree up to a separator
            may stand in any order.
        heads: int32[u], the distinct tokens, ascending.
        head_starts: int32[u + 1]; the suffixes that start with ``heads[i]`` are
            ``suffix_array[head_starts[i]:head_starts[i + 1]]``.
    """

    suffix_array: np.ndarray
    heads: np.ndarray
    head_starts: np.ndarray


def build_suffix_index(tokens: np.ndarray) -> SuffixIndex:
    """Sort the suffixes of ``tokens``, int32[n], each document followed by `SEPARATOR`; n may be 0."""
    from pydivsufsort import divsufsort

    counts = _token_counts(tokens)
    heads, head_starts = _heads(counts)
    if not len(heads):
        return SuffixIndex(np.empty(0, np.int32), heads, head_starts)
    # divsufsort sorts bytes: token ids are replaced by their rank, so that two bytes, often one, are enough.
    ranks = np.zeros(len(counts) + 1, np.min_scalar_type(len(heads)))
    ranks[heads] = np.arange(1, len(heads) + 1)  # the last entry, which SEPARATOR indexes, stays 0
    with _one_openmp_thread():
        suffixes = divsufsort(ranks[tokens])
    num_separators = len(tokens) - int(head_starts[-1])
    return SuffixIndex(suffixes[num_separators:].astype(np.int32), heads, head_starts)


def find_fault(tokens: np.ndarray, index: SuffixIndex, vocab_size: int) -> str | None:
    """What is wrong with an index, or None if it is right; about a second for ten million tokens.

    Args:
        tokens: int32[n].
        index: the index to check; each array must already have a consistent length.
        vocab_size: every token must be smaller.
    """
    if len(tokens) and tokens[-1] != SEPARATOR:
        return "its last document has no end"
    if len(tokens) and (tokens.min() < SEPARATOR or tokens.max() >= vocab_size):
        return "it holds token ids outside the vocabulary"
    rank = _inverse(tokens, index.suffix_array)
    if rank is None:
        return "its suffix array is not a permutation of the token positions"
    if not _is_sorted(tokens, index.suffix_array, rank):
        return "its suffix array is not sorted"
    if not _are_heads(tokens, index):
        return "its list of first tokens is wrong"
    return None


@contextmanager
def _one_openmp_thread() -> Iterator[None]:
    """Sort in this thread alone: OpenMP makes small inputs ten times slower and large ones no faster."""
    from pydivsufsort.dll import libdivsufsort

    if not hasattr(libdivsufsort, "omp_set_num_threads"):  # built without OpenMP
        yield
        return
    num_threads = libdivsufsort.omp_get_max_threads()
    libdivsufsort.omp_set_num_threads(1)
    try:
        yield
    finally:
        libdivsufsort.omp_set_num_threads(num_threads)


def _token_counts(tokens: np.ndarray) -> np.ndarray:
    """int64[largest token + 1], how often each token occurs; in chunks, as bincount widens its input."""
    counts = np.zeros(int(tokens.max(initial=SEPARATOR)) + 1, np.int64)
    for start in range(0, len(tokens), _CHUNK):
        chunk = tokens[start : start + _CHUNK]
        counts += np.bincount(chunk[chunk != SEPARATOR], minlength=len(counts))
    return counts


def _heads(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heads = np.flatnonzero(counts)
    head_starts = np.concatenate(([0], np.cumsum(counts[heads])))
    return heads.astype(np.int32), head_starts.astype(np.int32)


def _inverse(tokens: np.ndarray, suffix_array: np.ndarray) -> np.ndarray | None:
    """int32[n], the place of each position in the suffix array, -1 at separators.

    None if an entry is out of range or occurs twice, or a token has none.
    """
    if len(suffix_array) and (suffix_array.min() < 0 or suffix_array.max() >= len(tokens)):
        return None
    rank = np.full(len(tokens), -1, np.int32)
    for start in range(0, len(suffix_array), _CHUNK):
        positions = suffix_array[start : start + _CHUNK]
        rank[positions] = np.arange(start, start + len(positions), dtype=np.int32)
    # There are as many entries as tokens, so that every token has a place iff no entry occurs twice.
    return rank if np.array_equal(rank < 0, tokens == SEPARATOR) else None


def _are_heads(tokens: np.ndarray, index: SuffixIndex) -> bool:
    """Whether the first tokens of sorted suffixes are as listed; counting tokens would take a whole
    vocabulary's memory, whose size a file may make up.
    """
    firsts = tokens[index.suffix_array]
    changes = np.flatnonzero(np.diff(firsts, prepend=SEPARATOR))
    return np.array_equal(firsts[changes], index.heads) and np.array_equal(
        np.append(changes, len(firsts)), index.head_starts
    )


def _is_sorted(tokens: np.ndarray, suffix_array: np.ndarray, rank: np.ndarray) -> bool:
    """Whether each suffix is no greater than the next: by its first token, else by the rank of its rest."""
    for start in range(0, len(suffix_array) - 1, _CHUNK):
        positions = suffix_array[start : start + _CHUNK + 1]
        first, rest = tokens[positions], rank[positions + 1]  # a token is never last: a separator follows
        ordered = (first[:-1] < first[1:]) | ((first[:-1] == first[1:]) & (rest[:-1] <= rest[1:]))
        if not ordered.all():
            return False
    return True
