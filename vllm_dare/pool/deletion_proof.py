"""Proving a deletion: of the word sequences that only the removed text had, none can be drafted any more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_dare.pool.segment import Segment

# Shorter runs are wording that anybody may write.
RUN_TOKENS = 8


@dataclass(frozen=True)
class DeletionProof:
    """What was looked for in the indexes that drafts come from.

    Attributes:
        num_runs: different runs of `RUN_TOKENS` tokens in the removed text.
        num_unique: of these, those that nothing else held before.
        num_left: of the latter, those that are still found.
    """

    num_runs: int
    num_unique: int
    num_left: int


def prove_deletion(
    removed: Sequence[npt.NDArray[np.int32]],
    old: Iterable[Segment],
    new: Iterable[Segment],
    kept: Iterable[Segment],
) -> DeletionProof:
    """Look for runs of removed text, in what held it and in what took its place.

    Args:
        removed: the removed documents, each int32[length]; one that was removed in several places is there
            as often.
        old: the segments that held them.
        new: those that took the place of these.
        kept: all others that draft.
    """
    runs, counts = _runs_of(removed)
    elsewhere = count_runs(runs, kept)
    is_unique = count_runs(runs, old) + elsewhere == counts
    is_left = count_runs(runs, new) + elsewhere > 0
    return DeletionProof(len(runs), int(is_unique.sum()), int((is_unique & is_left).sum()))


def count_runs(runs: npt.NDArray[np.int32], segments: Iterable[Segment]) -> npt.NDArray[np.int64]:
    """How often each run, int32[n, RUN_TOKENS], occurs, int64[n]; a microsecond a run and segment."""
    from vllm_dare.pool.kernels import add_counts, segment_row  # with numba, which not every command needs

    counts = np.zeros(len(runs), np.int64)
    for segment in segments:
        add_counts(segment_row(segment), runs, counts)
    return counts


def _runs_of(
    documents: Sequence[npt.NDArray[np.int32]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The different runs of some documents, and how often each occurs in them."""
    windows = [
        np.lib.stride_tricks.sliding_window_view(document, RUN_TOKENS)
        for document in documents
        if len(document) >= RUN_TOKENS
    ]
    if not windows:
        return np.zeros((0, RUN_TOKENS), np.int32), np.zeros(0, np.int64)
    # As strings of bytes, which sort faster than rows; big-endian or not does not matter.
    rows = np.ascontiguousarray(np.concatenate(windows))
    found, counts = np.unique(rows.view(f"V{RUN_TOKENS * rows.itemsize}"), return_counts=True)
    return found.view(np.int32).reshape(-1, RUN_TOKENS), counts
