"""Where the choice of a token decides what a text goes on to say, and where it is wording: told by the pool.

After some contexts the texts of a pool go on differently. Often that is wording: whichever token stands
there, the texts say the same things afterwards. At other places the choice and what follows depend on each
other ("their favourite genre is" …, "a combination of" …); these are pivots. A relaxed rule with
``wording_only`` leaves pivots to the target.

The measure is the share of the variance of the following text that the choice explains. Of every place where
a context of three tokens stands, the text from `_SKIP` to `_SKIP` + `_SPAN` tokens behind the choice is
described by a random projection of its tokens, each weighted by its inverse document frequency; the nearest
tokens are left out, since any two words are followed by different ones and what counts is whether the texts
join again. Over the places of one context, grouped by choice, omega squared (Hays, 1963), which is unbiased
for few places, estimates that share. docs/wording.md has what it was chosen over.
"""

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CONTEXT = 3  # tokens before a place that say which context it is
BEGIN = -1  # stands before a text's first token
_SKIP, _SPAN = 8, 64  # tokens
_DIMENSIONS = 32
_MIN_PLACES = 3  # choices that were made less often are left out
_MIN_FREEDOM = 4  # places of a context beyond its choices
_MAX_SHARE = 0.05  # of the variance; beyond it, a context is a pivot
_MAX_TOKENS = 2**20  # so much text is looked at
HASH_PRIME, HASH_OFFSET = np.uint64(1099511628211), np.uint64(14695981039346656037)


def find_pivots(documents: Sequence[npt.NDArray[np.int32]], vocab_size: int) -> npt.NDArray[np.uint64]:
    """The pivots among the contexts of a pool's documents.

    Args:
        documents: each int32[length]; of more than a million tokens, evenly spaced ones are looked at.
        vocab_size: of the tokenizer.

    Returns:
        uint64[any], the sorted hashes of the contexts, see `hash_contexts`; the same for the same documents.
    """
    documents = [document for document in _sample(documents) if len(document)]
    if len(documents) < 2:
        return np.zeros(0, np.uint64)
    tokens = np.concatenate(documents).astype(np.int64)
    lengths = np.array([len(document) for document in documents])
    following = _following(tokens, lengths, _weights(tokens, lengths, vocab_size))
    contexts = hash_contexts(_contexts(tokens, lengths))
    shares = explained_shares(contexts, tokens, following)
    return np.sort(np.array([context for context, share in shares if share > _MAX_SHARE], dtype=np.uint64))


def explained_shares(
    contexts: npt.NDArray[np.uint64], choices: npt.NDArray[np.int64], following: npt.NDArray[np.float64]
) -> list[tuple[int, float]]:
    """How much of what follows the choice explains: (context, omega squared) for contexts with enough places.

    Args:
        contexts: uint64[places]; choices: int64[places], the token there.
        following: float64[places, dimensions], what follows.
    """
    order = np.lexsort((choices, contexts))
    contexts, choices, following = contexts[order], choices[order], following[order]
    starts = _starts(contexts) | _starts(choices)
    firsts = np.flatnonzero(starts)
    counts = np.diff(firsts, append=len(contexts))
    sums = np.add.reduceat(following, firsts)
    squares = np.add.reduceat(np.einsum("ij,ij->i", following, following), firsts)
    kept = counts >= _MIN_PLACES
    group_contexts, counts, sums, squares = contexts[firsts][kept], counts[kept], sums[kept], squares[kept]
    if not len(counts):
        return []
    by_context = np.flatnonzero(_starts(group_contexts))
    number = np.add.reduceat(counts, by_context)
    classes = np.diff(by_context, append=len(counts))
    explained = np.add.reduceat(np.einsum("ij,ij->i", sums, sums) / counts, by_context)
    total_sums = np.add.reduceat(sums, by_context)
    around_mean = np.einsum("ij,ij->i", total_sums, total_sums) / number
    total = np.add.reduceat(squares, by_context) - around_mean
    between = explained - around_mean
    freedom = number - classes
    enough = (classes >= 2) & (freedom >= _MIN_FREEDOM)
    within = (total - between)[enough] / freedom[enough]
    total, between, classes = total[enough], between[enough], classes[enough]
    omega = (between - (classes - 1) * within) / np.maximum(total + within, np.finfo(float).tiny)
    return list(zip(group_contexts[by_context][enough].tolist(), omega.tolist(), strict=True))


def hash_contexts(contexts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One number for each context (FNV-1a over tokens).

    Args:
        contexts: int64[places, CONTEXT], the tokens before each place, `BEGIN` before a text's first.
    """
    hashes = np.full(len(contexts), HASH_OFFSET)
    for column in contexts.T:
        hashes = (hashes ^ (column + 1).astype(np.uint64)) * HASH_PRIME
    return hashes


def encode(pivots: npt.NDArray[np.uint64]) -> str:
    """As text, for the manifest."""
    return base64.b64encode(pivots.astype("<u8").tobytes()).decode("ascii")


def decode(text: str) -> npt.NDArray[np.uint64]:
    """The reverse of `encode`.

    Raises:
        ValueError: the text is damaged.
    """
    data = base64.b64decode(text, validate=True)
    if len(data) % 8:
        raise ValueError("pivots are cut off")
    pivots = np.frombuffer(data, "<u8").astype(np.uint64)
    if (pivots[1:] <= pivots[:-1]).any():
        raise ValueError("pivots are not in order")
    return pivots


def _sample(documents: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.int32]]:
    total = sum(map(len, documents))
    step = max(1, -(-total // _MAX_TOKENS))
    return list(documents[::step])


def _weights(
    tokens: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], vocab_size: int
) -> npt.NDArray[np.float64]:
    """A random direction for each token, as long as its inverse document frequency: [vocab, dimensions]."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(document * vocab_size + tokens)
    frequency = np.bincount(pairs % vocab_size, minlength=vocab_size)
    directions = np.random.default_rng(0).normal(size=(vocab_size, _DIMENSIONS))
    rarity = np.log((len(lengths) + 1) / (frequency + 1))
    weights: npt.NDArray[np.float64] = directions * rarity[:, None]
    return weights


def _following(
    tokens: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """What follows each place within its document: float64[places, dimensions]."""
    sums = np.concatenate([np.zeros((1, _DIMENSIONS)), np.cumsum(weights[tokens], axis=0)])
    ends = np.repeat(np.cumsum(lengths), lengths)
    begins = np.minimum(np.arange(len(tokens)) + 1 + _SKIP, ends)
    following: npt.NDArray[np.float64] = sums[np.minimum(begins + _SPAN, ends)] - sums[begins]
    return following


def _contexts(tokens: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    place = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns = []
    for back in range(CONTEXT, 0, -1):
        column = np.roll(tokens, back)
        column[place < back] = BEGIN
        columns.append(column)
    return np.stack(columns, axis=1)


def _starts(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where a run of equal values begins."""
    return np.concatenate([[True], values[1:] != values[:-1]])
