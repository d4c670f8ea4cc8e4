"""Texts as vectors: offline by default, with a sentence-transformers model if one is named."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.extras import need

DIMENSIONS = 32


class Embedder(Protocol):
    """What turns texts into vectors.

    Attributes:
        name: for the report.
    """

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32[texts, dimensions], of length 1 each (or 0, for a text that has nothing known in it)."""


class TfidfEmbedder:
    """Latent semantic analysis: TF-IDF of words and pairs of words, and its largest singular vectors.

    Args:
        texts: the baseline's, which it is fitted on.
        dimensions: at most; fewer if there are fewer texts.

    Raises:
        DareError: scikit-learn is missing, or the texts have no words.
    """

    def __init__(self, texts: Sequence[str], dimensions: int = DIMENSIONS) -> None:
        text = need("sklearn.feature_extraction.text", "scikit-learn")
        decomposition = need("sklearn.decomposition", "scikit-learn")
        self._tfidf = text.TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"
        )
        try:
            weights = self._tfidf.fit_transform(texts)
        except ValueError:
            raise DareError(
                "The baseline's texts have no words, so that there is nothing to embed."
            ) from None
        size = max(1, min(dimensions, *(n - 1 for n in weights.shape)))
        self._svd = decomposition.TruncatedSVD(size, random_state=0)
        self._svd.fit(weights)
        self.name = f"TF-IDF of 1-2 words, {size} singular vectors, fitted on the baseline"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.embed`."""
        return _unit(self._svd.transform(self._tfidf.transform(texts)))


class SentenceEmbedder:
    """A sentence-transformers model.

    Args:
        model: a directory, or a name on the model hub.

    Raises:
        DareError: sentence-transformers is missing, or the model cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        package = need("sentence_transformers", "sentence-transformers", "sentence-transformers")
        try:
            self._model = package.SentenceTransformer(model)
        except Exception as error:  # whatever the hub, a file or torch comes up with
            line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DareError(f"The embedding model {model} cannot be loaded ({line}).") from None
        self.name = model

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.embed`."""
        return _unit(self._model.encode(list(texts), show_progress_bar=False))


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64[texts]: the cosine of each pair of vectors of length 1."""
    return np.asarray(np.einsum("ij,ij->i", first.astype(np.float64), second.astype(np.float64)))


def reduced(baseline: np.ndarray, others: Sequence[np.ndarray], dimensions: int) -> list[np.ndarray]:
    """The vectors in at most so many dimensions: the baseline's largest singular vectors."""
    if baseline.shape[1] <= dimensions:
        return list(others)
    _, _, directions = np.linalg.svd(baseline, full_matrices=False)
    return [other @ directions[:dimensions].T for other in others]


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
