"""What the acceptance rule asks of a row of logits, each in one pass that the compiler turns into vectors.

Only rows that are reached are read. (Torch finds the place of a maximum ten times slower than the maximum,
and its `logsumexp` goes over a row several times.)
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from vllm_dare.pool.kernels import CACHE

_BLOCK = 1024
# What may be reordered; not that numbers are finite, as a masked token's logit is -inf.
_FAST = {"reassoc", "nsz", "nnan", "arcp", "contract"}
_LOG2_E = np.float32(1.4426950408889634)
_SMALLEST = np.float32(-126.0)  # 2 ** -126 is the smallest normal float32
# 2 ** f for f in [-1/2, 1/2] by its Taylor series, relative error below 2e-7.
_C1, _C2, _C3 = np.float32(0.69314718), np.float32(0.24022651), np.float32(0.055504109)
_C4, _C5, _C6 = np.float32(0.0096181291), np.float32(0.0013333558), np.float32(0.00015469973)


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 that an int32 is the bits of."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(cache=CACHE, nogil=True)
def _number_of(part, logit):  # type: ignore[no-untyped-def]
    number = 0
    for value in part:
        number += value == logit
    return number


@njit(cache=CACHE, nogil=True)
def token_of(row, logit):  # type: ignore[no-untyped-def]
    """The first token of float32[vocab] with this logit, as `argmax` has it of the largest; else vocab."""
    first = 0
    while first < len(row) and not _number_of(row[first : first + _BLOCK], logit):
        first += _BLOCK
    token = first
    while token < len(row) and row[token] != logit:
        token += 1
    return min(token, len(row))


@njit(cache=CACHE, nogil=True, fastmath=_FAST)
def _shares_of(part, top):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for value in part:
        exponent = max((value - top) * _LOG2_E, _SMALLEST)
        whole = np.float32(np.floor(exponent + np.float32(0.5)))
        rest = exponent - whole
        power = np.float32(1.0) + rest * (
            _C1 + rest * (_C2 + rest * (_C3 + rest * (_C4 + rest * (_C5 + rest * _C6))))
        )
        total += power * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
    return total


@njit(cache=CACHE, nogil=True)
def sum_of_shares(row, top):  # type: ignore[no-untyped-def]
    """The sum of exp(logit - top) over float32[vocab], `top` being the largest logit: 1 / p(m)."""
    total = 0.0
    for first in range(0, len(row), _BLOCK):
        total += _shares_of(row[first : first + _BLOCK], top)
    return total


@njit(cache=CACHE, nogil=True)
def rank_of(row, token):  # type: ignore[no-untyped-def]
    """The rank of a token, 1 for the most probable; of equals the smaller id ranks first."""
    logit = row[token]
    rank = 1
    for other in range(len(row)):
        rank += row[other] > logit
    for other in range(token):
        rank += row[other] == logit
    return rank


@njit(cache=CACHE, nogil=True)
def entropy_of(row, top, total):  # type: ignore[no-untyped-def]
    """-sum p log p over the three most probable tokens, in nats; `total` is `sum_of_shares(row, top)`."""
    first, second, third = -np.inf, -np.inf, -np.inf
    for value in row:
        if value > third:
            if value > first:
                first, second, third = value, first, second
            elif value > second:
                second, third = value, second
            else:
                third = value
    entropy = 0.0
    for value in (first, second, third):
        p = np.exp(np.float64(value - top)) / total
        if p > 0:
            entropy -= p * np.log(p)
    return entropy
