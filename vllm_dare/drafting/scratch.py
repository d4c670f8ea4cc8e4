"""The memory that look-ups work in: what a request keeps from step to step, and scratch space for a chain.

Kernels get both as addresses and see them as arrays.
"""

import numpy as np
from numba import njit

from vllm_dare.drafting.blend import NUM_KINDS
from vllm_dare.drafting.cache import extend_hash
from vllm_dare.drafting.contexts import MAX_MATCH
from vllm_dare.drafting.own_text import MAX_PLACES, SLOTS, WINDOW, index_own_text
from vllm_dare.pool.kernels import array_at, int32_array, int64_array, kernel

# At most this many different continuations are told apart at one position.
MAX_CANDIDATES = 128

_HEADER = 2  # words of a memory before its arrays: the text's length, and whether it was ever used


def memory_size(num_sources: int) -> int:
    """How many int64 words a request's memory has; zeros are an empty one.

    It holds, of the text at its last look-up: its length, its last MAX_MATCH tokens, the index of the own
    text, and for each source the ranges of the contexts at its last MAX_MATCH positions, modulo MAX_MATCH.
    """
    return _HEADER + (MAX_MATCH + SLOTS + WINDOW) // 2 + 3 * MAX_MATCH * num_sources


def workspace_size(num_sources: int, limit: int) -> int:
    """How many int64 words of scratch memory a chain of at most `limit` tokens needs."""
    room = MAX_MATCH + limit
    per_source = 3 * room + 1
    return num_sources * per_source + 2 * MAX_PLACES + 4 * MAX_CANDIDATES + NUM_KINDS + 2 * room + 1


@njit(inline="always")
def memory_arrays(address, num_sources):  # type: ignore[no-untyped-def]
    """The arrays of a memory, see `memory_size`: (header, tail, slots, previous, rings)."""
    header = int64_array(address, _HEADER)
    address += 8 * _HEADER
    tail = int32_array(address, MAX_MATCH)
    address += 4 * MAX_MATCH
    slots = int32_array(address, SLOTS)
    address += 4 * SLOTS
    previous = int32_array(address, WINDOW)
    address += 4 * WINDOW
    rings = array_at(address, (3, num_sources, MAX_MATCH), np.int64)
    return header, tail, slots, previous, rings


@njit(inline="always")
def workspace_arrays(address, num_sources, limit):  # type: ignore[no-untyped-def]
    """Scratch arrays for one chain in the `workspace_size` words at an address.

    Returns:
        ranges: (lows, highs, depths), int64[num_sources, MAX_MATCH + limit] each, see `occurrences`.
        firsts: int64[num_sources], the longest context of each source that may still occur.
        own: (places, lengths), see `match_own_text`.
        tally: (candidates, counts, scores, origins, matches), of the tokens that may come next.
        context: (tokens, hashes), int32[MAX_MATCH + limit] and int64[MAX_MATCH + limit + 1], of the text's
            end and the drafts; hashes[i] is that of tokens[:i].
        seen: int64[NUM_KINDS], places of the longer contexts.
    """
    room = MAX_MATCH + limit
    cells = num_sources * room
    lows = array_at(address, (num_sources, room), np.int64)
    address += 8 * cells
    highs = array_at(address, (num_sources, room), np.int64)
    address += 8 * cells
    depths = array_at(address, (num_sources, room), np.int64)
    address += 8 * cells
    firsts = int64_array(address, num_sources)
    address += 8 * num_sources
    places = int64_array(address, MAX_PLACES)
    address += 8 * MAX_PLACES
    lengths = int64_array(address, MAX_PLACES)
    address += 8 * MAX_PLACES
    counts = array_at(address, (MAX_CANDIDATES,), np.float64)
    address += 8 * MAX_CANDIDATES
    scores = array_at(address, (MAX_CANDIDATES,), np.float64)
    address += 8 * MAX_CANDIDATES
    seen = int64_array(address, NUM_KINDS)
    address += 8 * NUM_KINDS
    hashes = int64_array(address, room + 1)
    address += 8 * (room + 1)
    candidates = int32_array(address, MAX_CANDIDATES)
    address += 4 * MAX_CANDIDATES
    origins = int32_array(address, MAX_CANDIDATES)
    address += 4 * MAX_CANDIDATES
    matches = int32_array(address, MAX_CANDIDATES)
    address += 4 * MAX_CANDIDATES
    tokens = int32_array(address, room)
    tally = (candidates, counts, scores, origins, matches)
    return (lows, highs, depths), firsts, (places, lengths), tally, (tokens, hashes), seen


@njit(inline="always")
def add_to_context(context, position, token):  # type: ignore[no-untyped-def]
    """Put the token at a position of the context, all before it being there."""
    tokens, hashes = context
    tokens[position] = token
    hashes[position + 1] = extend_hash(hashes[position], token)


@kernel
def recall(memory, text, size, known):  # type: ignore[no-untyped-def]
    """Bring a memory up to text[:size]; what it held of another text is forgotten."""
    header, tail, slots, previous, rings = memory
    before = header[0]
    kept = header[1] == 1 and before <= size
    if kept:
        for position in range(max(0, before - MAX_MATCH), before):
            if tail[position & (MAX_MATCH - 1)] != text[position]:
                kept = False
                break
    if not kept:
        before = 0
        slots[:] = -1
    begin = max(0, size - WINDOW)
    index_own_text(text, max(before, begin), size, slots, previous)
    for position in range(max(before, size - known), size):
        slot = position & (MAX_MATCH - 1)
        tail[slot] = text[position]
        for s in range(rings.shape[1]):
            rings[2, s, slot] = 0
    header[0] = size
    header[1] = 1


@njit(inline="always")
def copy_ranges(rings, ranges, base, known, back):  # type: ignore[no-untyped-def]
    """From a memory's rings, by position modulo MAX_MATCH, to a chain's ranges, by position from `base`, or
    back.
    """
    for s in range(rings.shape[1]):
        for kind in range(3):
            for i in range(known):
                slot = (base + i) & (MAX_MATCH - 1)
                if back:
                    rings[kind, s, slot] = ranges[kind][s, i]
                else:
                    ranges[kind][s, i] = rings[kind, s, slot]
