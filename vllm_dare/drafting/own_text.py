"""The request's own text as a source: where the tokens just written have occurred in it before.

A hash chain links every position to the previous one with the same token, so that only places that match at
least one token are visited. It is extended as the text grows.
"""

from vllm_dare.pool.kernels import kernel

# Number of hash slots; a power of two, so that a mask replaces the division.
SLOTS = 1024
# Of a longer text only this many latest tokens are searched, so that a look-up's cost stays bounded; a power
# of two as well.
WINDOW = 8192
# At most this many earlier places are compared; the latest come first.
MAX_PLACES = 128


@kernel
def index_own_text(text, begin, end, slots, previous):  # type: ignore[no-untyped-def]
    """Link the positions [begin, end) of `text` to those before them.

    Args:
        text: int32[...].
        slots: int32[SLOTS], the last position of each hash value, -1 where none.
        previous: int32[WINDOW], for each position, modulo WINDOW, the one before with the same hash value.
    """
    for position in range(begin, end):
        slot = text[position] & (SLOTS - 1)
        previous[position & (WINDOW - 1)] = slots[slot]
        slots[slot] = position


@kernel
def match_own_text(text, begin, end, slots, previous, context, size, max_match, places, lengths):  # type: ignore[no-untyped-def]
    """Where context[:size]'s last tokens occurred in text[begin:end].

    Args:
        context: int32[...], the tokens to match, the last at size - 1; may run past the text's end by
            tokens that are drafted but not yet written.
        max_match: matches are not followed further back than this many tokens.
        places: int64[MAX_PLACES], filled with the positions that follow each match.
        lengths: int64[MAX_PLACES], filled with the number of tokens that match.

    Returns:
        How many places were found. The text's own end is not among them: nothing follows it yet.
    """
    found = 0
    last = context[size - 1]
    position = slots[last & (SLOTS - 1)]
    while position >= begin and found < MAX_PLACES:
        if text[position] == last and position + 1 < end:
            length = 1
            while (
                length < max_match
                and length < size
                and position - length >= begin
                and text[position - length] == context[size - 1 - length]
            ):
                length += 1
            places[found] = position + 1
            lengths[found] = length
            found += 1
        position = previous[position & (WINDOW - 1)]
    return found
