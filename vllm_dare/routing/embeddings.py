"""What a method learns: a vector for each user and each item."""

from dataclasses import dataclass

import numpy as np

DIMENSIONS = 32
_NO_LENGTH = 1e-12  # below it a vector has no direction


@dataclass(frozen=True)
class Embeddings:
    """Vectors of one space.

    Attributes:
        users: float32[users, dimensions]; a row of zeros for a user of whom nothing is known.
        items: float32[items, dimensions]; likewise.
    """

    users: np.ndarray
    items: np.ndarray


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The rows at length 1; those shorter than 1e-12 become zero.

    Args:
        vectors: float32[rows, dimensions].

    Returns:
        float32[rows, dimensions], a copy.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = lengths > _NO_LENGTH
    return np.where(known, vectors / np.where(known, lengths, 1), 0).astype(np.float32)
