"""The records of a cache; that look-ups through one find what look-ups anew find is tested with the chain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.drafting import cache
from vllm_dare.drafting.cache import (
    SAMPLES,
    bounds_of,
    context_key,
    extend_hash,
    has_key,
    make_cache,
    number_of_tokens,
    read_range,
    record_of,
    sampled,
    set_number_of_tokens,
    tokens_of,
    write_range,
)
from vllm_dare.pool.kernels import kernel


@kernel
def keys_of(tokens, identity, keys, hashes):  # type: ignore[no-untyped-def]
    """The keys of all contexts of a text: keys[start, end]."""
    hashes[0] = 0
    for i in range(tokens.size):
        hashes[i + 1] = extend_hash(hashes[i], tokens[i])
    for start in range(tokens.size):
        for end in range(start + 1, tokens.size + 1):
            keys[start, end] = context_key(hashes, start, end, identity)


def keys(tokens: list[int], identity: int) -> np.ndarray:
    size = len(tokens)
    found = np.zeros((size, size + 1), np.int64)
    keys_of(np.array(tokens, np.int32), identity, found, np.zeros(size + 1, np.int64))
    return found


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 3))
def test_a_key_says_which_tokens_and_which_source(tokens: list[int], identity: int) -> None:
    found = keys(tokens, identity)
    seen: dict[int, tuple[int, ...]] = {}
    for start in range(len(tokens)):
        for end in range(start + 1, len(tokens) + 1):
            assert seen.setdefault(int(found[start, end]), tuple(tokens[start:end])) == tuple(
                tokens[start:end]
            )
    assert len(seen) == len(
        {tuple(tokens[i:j]) for i in range(len(tokens)) for j in range(i + 1, len(tokens) + 1)}
    )
    assert not set(seen) & set(keys(tokens, identity + 1)[found != 0].tolist())


def test_small_numbers_do_not_meet() -> None:
    # Single tokens and the identities of learned runs are both small numbers.
    every = [int(keys([token], identity)[0, 1]) for token in range(300) for identity in range(300)]
    assert len(set(every)) == len(every)


@kernel
def put_and_get(address, key, lo, hi):  # type: ignore[no-untyped-def]
    record = record_of(address, key)
    before = has_key(record, key)
    write_range(record, key, lo, hi)
    low, high = read_range(record)
    return before, has_key(record, key), low, high, number_of_tokens(record)


def test_a_record_holds_a_range_with_nothing_counted_yet() -> None:
    memory = make_cache(0)
    for key, lo, hi in ((5, 0, 8), (-(2**62), 2**31 - 9, 2**31 - 1)):
        assert put_and_get(memory.ctypes.data, key, lo, hi) == (False, True, lo, hi, -1)
        assert put_and_get(memory.ctypes.data, key, lo, hi)[0]


def test_records_stay_inside_the_cache_and_spread_over_it() -> None:
    memory = make_cache(0)
    rng = np.random.default_rng(0)
    for key in rng.integers(-(2**63), 2**63 - 1, 20_000).tolist():
        put_and_get(memory.ctypes.data, key, 1, 9)
    used = memory[8:].reshape(-1, 16)[:, 0] != 0
    assert used.sum() > 18_000  # of 131,072 records; some keys share one
    assert all(half.sum() > 8_500 for half in np.split(used, 2))


@pytest.mark.parametrize(
    ("tokens", "records"),
    [(0, 1 << 17), (10**6, 1 << 17), (100 * 10**6, 1 << 20), (10**12, 1 << 20)],
)
def test_a_larger_pool_has_a_larger_cache_up_to_a_bound(tokens: int, records: int) -> None:
    memory = make_cache(tokens)
    assert memory[0] == records - 1
    assert memory.ctypes.data % cache._CACHE_LINE == 0
    assert memory.nbytes == cache._HEADER_BYTES + records * cache._RECORD_BYTES


@kernel
def fill_and_bound(address, following, lo, hi, token):  # type: ignore[no-untyped-def]
    """Count what follows a range, `following` says what at each of its places; then ask for bounds."""
    record = record_of(address, 1)
    write_range(record, 1, lo, hi)
    tokens, counts = tokens_of(record)
    number = 0
    for i in range(SAMPLES):
        found = following[sampled(lo, hi - lo, i) - lo]
        if number > 0 and tokens[number - 1] == found:
            counts[number - 1] += 1
        else:
            tokens[number], counts[number] = found, 1
            number += 1
    set_number_of_tokens(record, number)
    return bounds_of(record, lo, hi, token)


@given(
    st.lists(st.integers(-1, 12), min_size=SAMPLES + 1, max_size=300), st.integers(0, 9), st.integers(-1, 13)
)
def test_bounds_hold_what_goes_on_with_a_token(following: list[int], lo: int, token: int) -> None:
    following.sort()
    array = np.array(following, np.int32)
    memory = make_cache(0)
    a, b, c, d = fill_and_bound(memory.ctypes.data, array, lo, lo + len(following), token)
    first = lo + int(np.searchsorted(array, token, "left"))
    after = lo + int(np.searchsorted(array, token, "right"))
    assert lo <= a <= first <= b <= lo + len(following)
    assert a <= c <= after <= d <= lo + len(following)
