"""Which rows are generated together: partitions of bounded size that keep groups whole."""

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

_PARTITIONS_PER_WORKER = 4  # so that no worker is idle for long while another has the last one

Rows = npt.NDArray[np.int64]


def partition_size(num_rows: int, workers: int, most: int) -> int:
    """How many rows a partition is to have at most.

    Args:
        num_rows: the rows to generate.
        workers: how many engines share them.
        most: the most rows anybody wants in a partition.
    """
    return max(1, min(most, -(-num_rows // (workers * _PARTITIONS_PER_WORKER))))


def pack(groups: Rows, size: int) -> list[Rows]:
    """Put rows into partitions: a group is in one of them, or, if it has more than ``size`` rows, in several.

    A larger group fills partitions of its own; what is left of it goes, like the smaller groups, the largest
    first, where it leaves least room (best-fit decreasing).

    Args:
        groups: int64[rows], a number for the group of each row.
        size: the most rows of a partition.

    Returns:
        The row numbers of each partition, those of a group side by side and ascending; the largest partitions
        come first. The same arguments always give the same.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = np.split(order, starts[1:]) if len(order) else []
    pieces = [piece for rows in members for piece in np.split(rows, range(size, len(rows), size))]
    pieces.sort(key=len, reverse=True)
    partitions: list[list[Rows]] = []
    rooms: list[tuple[int, int]] = []  # (rows that still fit, number of the partition), ascending
    for piece in pieces:
        place = bisect_left(rooms, (len(piece), 0))
        if place == len(rooms):
            room, number = size, len(partitions)
            partitions.append([])
        else:
            room, number = rooms.pop(place)
        partitions[number].append(piece)
        if room > len(piece):
            insort(rooms, (room - len(piece), number))
    filled = [np.concatenate(parts) for parts in partitions]
    return sorted(filled, key=len, reverse=True)
