"""Which passages of some documents a small pool should keep: those that help most to draft other documents.

A token can be drafted if it stands in the pool after the same tokens. So what a passage is worth is told by
its n-grams, of a few lengths: one that occurs in D documents helps D - 1 others to be drafted. The value of a
set of passages is the sum over its n-grams of sqrt(D - 1), or `_UNIQUE` for what one document alone has, of
which some will come again. That holds for the first copy; every further one is worth `_DISCOUNT` times what
the one before is: how often a text goes on in which way matters less than that the pool has it.

This is a weighted coverage, monotone and submodular, and is maximized greedily under the budget of tokens:
with a price per token that falls from pass to pass, each document keeps, at that price, the passages of most
value net of cost, given all that is kept already (threshold greedy: Badanidiyuru and Vondrák, 2014). Among
equals the newest documents win, since they are asked first, and what is left of the budget in the end goes to
the newest text.

N-grams are known by hashes in a table of bounded size. Where it is too full, some share a place and count as
one, which makes the choice a little worse and nothing wrong.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm_dare.pool.kernels import CACHE

# Lengths of n-grams, and the share of each in a token's value.
_LENGTHS = np.array([2, 3, 4, 6, 8, 12, 16, 24])
_SHARES = np.array([4.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0])
_UNIQUE = 0.15
_DISCOUNT = 0.02
_BEGIN_COST = 1.5  # tokens: for the 12 bytes of its end and its key, beside 8 for each token
_MOST_DOCUMENTS = 4096  # an n-gram that more documents have is worth no more
_PRICE_FALLS = 0.7
_LEAST_PRICE = 2**-10
_SLOTS_PER_TOKEN = 8
_MIN_SLOTS, _MAX_SLOTS = 2**16, 2**28  # of 11 bytes
_PROBES = 8
# The worth of an n-gram by the number of other documents that have it, and of a copy by those before it.
_WORTH = np.concatenate([[_UNIQUE], np.sqrt(np.arange(1, _MOST_DOCUMENTS + 1))])
_FRESH = _DISCOUNT ** np.arange(256.0)
_SHORTEST = 2  # tokens: one to be found by, one to draft
_BASE = np.uint64(0x9E3779B97F4A7C15)
_STIR = np.uint64(0xBF58476D1CE4E5B9)

Progress = Callable[[int, int], None]


class Passage(NamedTuple):
    """Tokens ``begin`` up to ``end`` of the document of that number."""

    document: int
    begin: int
    end: int


def choose_passages(
    documents: Sequence[npt.NDArray[np.int32]], budget: int, progress: Progress | None = None
) -> list[Passage]:
    """The passages to keep, in the order of the documents.

    Time and memory are linear in the tokens: some twenty passes over them; 5 bytes a token, and up to 176
    (in all, up to 3 GB) for what is known of n-grams.

    Args:
        documents: each int32[length], the oldest first.
        budget: the most tokens to keep.
        progress: called with the number of tokens kept so far, and to be kept, after each pass.

    Returns:
        Non-empty passages that do not touch each other, of at most ``budget`` tokens in all; every document
        whole if that is no more. The same arguments always give the same.
    """
    lengths = np.array([len(document) for document in documents], np.int64)
    total = int(lengths.sum())
    if total <= budget:
        return [Passage(number, 0, int(length)) for number, length in enumerate(lengths) if length]
    if budget <= 0:
        return []
    tokens = np.concatenate(documents).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    kept = np.zeros(total, np.bool_)
    slots = _num_slots(total)
    tags, copies = np.zeros(slots, np.uint32), np.zeros(slots, np.uint8)
    others = _count_others(tokens, starts, tags)
    num_kept, is_full = 0, False
    price = float(_WORTH[others.max()] * _SHARES.sum())
    while price > _LEAST_PRICE and not is_full:
        num_kept, is_full = _keep_at(price, tokens, starts, tags, others, copies, kept, num_kept, budget)
        price *= _PRICE_FALLS
        if progress is not None:
            progress(num_kept, budget)
    _fill_up(kept, budget - num_kept)
    if progress is not None:
        progress(budget, budget)
    return _passages(kept, starts)


def _num_slots(num_tokens: int) -> int:
    """A power of two."""
    wanted = 1 << (_SLOTS_PER_TOKEN * num_tokens).bit_length()
    return min(max(wanted, _MIN_SLOTS), _MAX_SLOTS)


def _fill_up(kept: npt.NDArray[np.bool_], number: int) -> None:
    """Keep ``number`` more tokens, the newest."""
    kept[np.flatnonzero(~kept)[::-1][:number]] = True


def _passages(kept: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> list[Passage]:
    """The runs of kept tokens, cut where documents begin; those from which nothing can be drafted are not."""
    before = np.concatenate([[False], kept[:-1]])
    before[starts[:-1][starts[:-1] < len(kept)]] = False
    begins = np.flatnonzero(kept & ~before)
    after = np.concatenate([kept[1:], [False]])
    after[starts[1:] - 1] = False
    ends = np.flatnonzero(kept & ~after) + 1
    long_enough = ends - begins >= _SHORTEST
    begins, ends = begins[long_enough], ends[long_enough]
    numbers = np.searchsorted(starts, begins, side="right") - 1
    return [
        Passage(number, begin, end)
        for number, begin, end in zip(
            numbers.tolist(),
            (begins - starts[numbers]).tolist(),
            (ends - starts[numbers]).tolist(),
            strict=True,
        )
    ]


@njit(cache=CACHE, nogil=True)
def _find_slots(tokens, powers, tags, hashes, slots):  # type: ignore[no-untyped-def]
    """Where the n-grams of one document are in the table.

    Args:
        tokens: int32[n], the document.
        powers: uint64[lengths], `_BASE` to the power of each of `_LENGTHS`.
        tags: uint32[slots, a power of two], a part of the hash of the n-gram that has the slot, 0 for none;
            new ones are put in.
        hashes: uint64[> n], scratch.
        slots: int64[> n, lengths], receives the slot of the n-gram that ends with each token; -1 where the
            document is not long enough before it.
    """
    hashes[0] = 0
    for i in range(tokens.size):
        hashes[i + 1] = hashes[i] * _BASE + np.uint64(tokens[i]) + np.uint64(1)
        for k in range(_LENGTHS.size):
            n = _LENGTHS[k]
            if n > i + 1:
                slots[i, k] = -1
                continue
            code = (hashes[i + 1] - hashes[i + 1 - n] * powers[k]) ^ np.uint64(n)
            code = (code ^ (code >> np.uint64(31))) * _STIR
            slots[i, k] = _slot(tags, code ^ (code >> np.uint64(29)))


@njit(cache=CACHE, nogil=True)
def _slot(tags, code):  # type: ignore[no-untyped-def]
    tag = np.uint32(code >> np.uint64(32)) | np.uint32(1)
    for probe in range(_PROBES):
        slot = np.int64((code + np.uint64(probe)) & np.uint64(tags.size - 1))
        if tags[slot] == 0:
            tags[slot] = tag
        if tags[slot] == tag:
            break
    return slot


@njit(cache=CACHE, nogil=True)
def _powers():  # type: ignore[no-untyped-def]
    powers = np.empty(_LENGTHS.size, np.uint64)
    for k in range(_LENGTHS.size):
        power = np.uint64(1)
        for _ in range(_LENGTHS[k]):
            power *= _BASE
        powers[k] = power
    return powers


@njit(cache=CACHE, nogil=True)
def _longest(starts):  # type: ignore[no-untyped-def]
    longest = 0
    for d in range(starts.size - 1):
        longest = max(longest, starts[d + 1] - starts[d])
    return longest


@njit(cache=CACHE, nogil=True)
def _count_others(tokens, starts, tags):  # type: ignore[no-untyped-def]
    """In how many documents beside one an n-gram occurs, by slot: uint16[slots]."""
    last = np.full(tags.size, -1, np.int32)  # the document that had it last
    others = np.zeros(tags.size, np.uint16)
    hashes = np.empty(_longest(starts) + 1, np.uint64)
    slots = np.empty((_longest(starts) + 1, _LENGTHS.size), np.int64)
    powers = _powers()
    for d in range(starts.size - 1):
        document = tokens[starts[d] : starts[d + 1]]
        _find_slots(document, powers, tags, hashes, slots)
        for i in range(document.size):
            for k in range(_LENGTHS.size):
                slot = slots[i, k]
                if slot < 0 or last[slot] == d:
                    continue
                if last[slot] >= 0 and others[slot] < _MOST_DOCUMENTS:
                    others[slot] += 1
                last[slot] = d
    return others


@njit(cache=CACHE, nogil=True)
def _keep_at(price, tokens, starts, tags, others, copies, kept, num_kept, budget):  # type: ignore[no-untyped-def]
    """One pass: every document, the newest first, keeps what is worth its price.

    Args:
        tags: see `_find_slots`.
        others, copies: by slot, see `_count_others`, and how often kept passages have the n-gram.
        kept: bool[tokens]; copies and kept are brought up to date.
        num_kept: how many tokens are kept; never above ``budget``.

    Returns:
        (number of tokens kept, whether a document had to be left out for want of budget).
    """
    longest = _longest(starts)
    hashes = np.empty(longest + 1, np.uint64)
    slots = np.empty((longest + 1, _LENGTHS.size), np.int64)
    came_from = np.empty((longest + 1, _LENGTHS[-1] + 1), np.int8)
    chosen = np.empty(longest + 1, np.bool_)
    powers = _powers()
    is_full = False
    for d in range(starts.size - 2, -1, -1):
        document = tokens[starts[d] : starts[d + 1]]
        have = kept[starts[d] : starts[d + 1]]
        _find_slots(document, powers, tags, hashes, slots)
        number = _best_passages(price, have, slots, others, copies, came_from, chosen)
        if number == 0:
            continue
        if num_kept + number > budget:
            is_full = True
            continue
        _count_copies(have, chosen, slots, copies)
        have[:] = chosen[: have.size]
        num_kept += number
    return num_kept, is_full


@njit(cache=CACHE, nogil=True)
def _best_passages(price, have, slots, others, copies, came_from, chosen):  # type: ignore[no-untyped-def]
    """What a document keeps at a price: the best path through it (Viterbi).

    The state after a token is the length of the passage that ends with it, 0 if it is not kept, up to the
    longest n-gram. Taking a token is worth the n-grams that it completes within its passage, less the price;
    beginning a passage with a new token costs `_BEGIN_COST` times the price on top. Tokens that are kept
    already stay, cost nothing, and are worth what is new.

    Args:
        have: bool[n], which tokens are kept already.
        came_from: int8[> n, states], scratch.
        chosen: bool[> n], receives the tokens that are kept then.

    Returns:
        How many tokens are new.
    """
    num_states = _LENGTHS[-1] + 1
    if not _is_any_worth(price, have, slots, others, copies):
        return 0
    best, after = np.full(num_states, -np.inf), np.empty(num_states)
    best[0] = 0.0
    run = 0  # length of the passage kept already that ends here
    for i in range(have.size):
        run = run + 1 if have[i] else 0
        leader = 0
        for s in range(1, num_states):
            if best[s] > best[leader]:
                leader = s
        after[0] = -np.inf if have[i] else best[leader]
        came_from[i, 0] = leader
        value = 0.0 if have[i] else -price
        k = 0
        for s in range(1, num_states):
            if k < _LENGTHS.size and _LENGTHS[k] == s:
                slot = slots[i, k]
                if slot >= 0 and run < s:
                    value += _SHARES[k] * _WORTH[others[slot]] * _FRESH[copies[slot]]
                k += 1
            before = s - 1
            if s == num_states - 1 and best[s] > best[before]:
                before = s
            after[s] = best[before] + value
            if s == 1 and not have[i]:
                after[s] -= price * _BEGIN_COST
            came_from[i, s] = before
        best, after = after, best
    state = 0
    for s in range(1, num_states):
        if best[s] > best[state]:
            state = s
    number = 0
    for i in range(have.size - 1, -1, -1):
        chosen[i] = state > 0
        number += chosen[i] and not have[i]
        state = came_from[i, state]
    return number


@njit(cache=CACHE, nogil=True)
def _is_any_worth(price, have, slots, others, copies):  # type: ignore[no-untyped-def]
    """Whether any token may be worth the price, by all n-grams that end with it or by joining passages."""
    for i in range(have.size):
        value = 0.0
        for k in range(_LENGTHS.size):
            slot = slots[i, k]
            if slot >= 0:
                value += _SHARES[k] * _WORTH[others[slot]] * _FRESH[copies[slot]]
        if have[i] or value > price:
            return True
    return False


@njit(cache=CACHE, nogil=True)
def _count_copies(have, chosen, slots, copies):  # type: ignore[no-untyped-def]
    """Count the n-grams of a document that are in what is chosen and were not in what it kept already."""
    before, now = 0, 0
    for i in range(have.size):
        before = before + 1 if have[i] else 0
        now = now + 1 if chosen[i] else 0
        for k in range(_LENGTHS.size):
            if before < _LENGTHS[k] <= now and copies[slots[i, k]] < 255:
                copies[slots[i, k]] += 1
