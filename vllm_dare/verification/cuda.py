"""The acceptance rule on CUDA: `verify` as two Triton kernels: one pass over the logits, no wait for them.

What is decided, and from what, is said in `vllm_dare.verification.policy`, against which this is tested.
"""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from vllm_dare.pool import pivots
from vllm_dare.verification import policy
from vllm_dare.verification.policy import BatchRules, Verdict

_BLOCK = 4096
_RELAXES = tl.constexpr(policy.RELAXES)
_TOP_K = tl.constexpr(policy.TOP_K)
_MIN_PROB = tl.constexpr(policy.MIN_PROB)
_MIN_RATIO = tl.constexpr(policy.MIN_RATIO)
_MIN_ENTROPY = tl.constexpr(policy.MIN_ENTROPY)
_WINDOW = tl.constexpr(policy.WINDOW)
_MAX_RELAXED = tl.constexpr(policy.MAX_RELAXED)
_MAX_PER_100 = tl.constexpr(policy.MAX_PER_100)
_MAX_IN_ROW = tl.constexpr(policy.MAX_IN_ROW)
_GUARDED_KINDS = tl.constexpr(policy.GUARDED_KINDS)
_WORDING_ONLY = tl.constexpr(policy.WORDING_ONLY)
_CONTEXT = tl.constexpr(pivots.CONTEXT)
_HASH_OFFSET = tl.constexpr(int(pivots.HASH_OFFSET))
_HASH_PRIME = tl.constexpr(int(pivots.HASH_PRIME))
_RULE_COLUMNS = tl.constexpr(policy.NUM_RULE_COLUMNS)
_PROGRESS_COLUMNS = tl.constexpr(policy.NUM_PROGRESS_COLUMNS)
_REPORT_COLUMNS = tl.constexpr(policy.NUM_REPORT_COLUMNS)
_QUOTE = tl.constexpr(policy.QUOTE)
_TURN = tl.constexpr(policy.TURN)
_LINE_END = tl.constexpr(policy.LINE_END)


def verify(
    logits: torch.Tensor,
    draft_token_ids: torch.Tensor,
    draft_ends: torch.Tensor,
    uniform: torch.Tensor | None,
    greedy: torch.Tensor | None,
    batch: BatchRules,
) -> Verdict:
    """See `vllm_dare.verification.policy.verify`; the tensors are on a GPU, and so is the result."""
    device, (tokens, vocab) = logits.device, logits.shape
    requests = len(draft_ends)
    floats = torch.empty((5, tokens), dtype=torch.float32, device=device)
    logit, tops, ratio, prob, entropy = floats
    best, rank = torch.empty((2, tokens), dtype=torch.int64, device=device)
    _measure[(tokens,)](
        logits, logits.stride(0), draft_token_ids, logit, tops, ratio, prob, entropy, best, rank, vocab,
        ENTROPY=bool((batch.rules[:, policy.MIN_ENTROPY] > 0).any()),
        BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)),
    )  # fmt: skip
    relaxed = torch.zeros(tokens, dtype=torch.bool, device=device)
    report = torch.zeros((requests, policy.NUM_REPORT_COLUMNS), dtype=torch.float64, device=device)

    def there(array: Any) -> torch.Tensor:
        # a kernel's argument must not be empty
        return torch.from_numpy(array if len(array) else np.zeros(1, array.dtype)).to(
            device, non_blocking=True
        )

    _walk[(requests,)](
        draft_token_ids,
        draft_ends,
        uniform if uniform is not None else prob,
        greedy if greedy is not None else draft_ends,
        best, rank, ratio, prob, entropy,
        there(batch.rules), there(batch.guard_ends), there(batch.guard_ids), there(batch.kinds),
        there(batch.progress), there(batch.recent), there(batch.pivots.view(np.int64)), len(batch.pivots),
        relaxed, report,
        ALL_GREEDY=uniform is None,
    )  # fmt: skip
    return Verdict(relaxed, logit, tops, report)


@triton.jit  # type: ignore[untyped-decorator]
def _measure(  # type: ignore[no-untyped-def]
    logits, stride, drafts, logit_out, top_out, ratio_out, prob_out, entropy_out, best_out, rank_out, vocab,
    ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is known of one row, from one pass over it: each lane keeps its own, then they are joined."""
    row = tl.program_id(0).to(tl.int64)
    draft = tl.maximum(tl.load(drafts + row), 0).to(tl.int64)
    begin = logits + row * stride
    logit = tl.load(begin + draft)
    first = tl.full((BLOCK,), float("-inf"), tl.float32)
    second = first
    third = first
    where = tl.zeros((BLOCK,), tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    before = tl.zeros((BLOCK,), tl.int64)
    for block in range(0, vocab, BLOCK):
        ids = block + tl.arange(0, BLOCK).to(tl.int64)
        values = tl.load(begin + ids, mask=ids < vocab, other=float("-inf"))
        is_first = values > first
        if ENTROPY:
            is_second = values > second
            third = tl.where(is_second, second, tl.maximum(third, values))
            second = tl.where(is_first, first, tl.maximum(second, values))
        top = tl.maximum(first, values)
        base = tl.where(top > float("-inf"), top, 0.0)  # inf - inf is not a number
        total = total * tl.exp(first - base) + tl.exp(values - base)
        where = tl.where(is_first, ids, where)
        first = top
        before += ((values > logit) | ((values == logit) & (ids < draft))).to(tl.int64)
    top = tl.max(first, axis=0)
    base = tl.where(top > float("-inf"), top, 0.0)
    total = tl.sum(total * tl.exp(first - base), axis=0)
    best = tl.min(tl.where(first == top, where, vocab), axis=0)
    ratio = tl.exp(logit - base)
    tl.store(logit_out + row, logit)
    tl.store(top_out + row, top)
    tl.store(ratio_out + row, ratio)
    tl.store(prob_out + row, ratio / tl.where(total > 0, total, 1.0))
    tl.store(best_out + row, best)
    tl.store(rank_out + row, 1 + tl.sum(before, axis=0))
    if ENTROPY:
        entropy = 0.0
        lanes = tl.arange(0, BLOCK)
        for _ in tl.static_range(3):
            value = tl.max(first, axis=0)
            p = tl.exp(value - base) / tl.where(total > 0, total, 1.0)
            entropy -= tl.where(p > 0, p * tl.log(tl.where(p > 0, p, 1.0)), 0.0)
            taken = lanes == tl.argmax(first, axis=0)
            first = tl.where(taken, second, first)
            second = tl.where(taken, third, second)
            third = tl.where(taken, float("-inf"), third)
        tl.store(entropy_out + row, entropy)


@triton.jit  # type: ignore[untyped-decorator]
def _exact(row, draft, greedy, best, prob, uniform, ALL_GREEDY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether vLLM's own rule accepts a row's draft token."""
    accepted = draft == tl.load(best + row)
    if not ALL_GREEDY:
        lucky = tl.load(prob + row).to(tl.float64) >= tl.load(uniform + row)
        accepted = (greedy & accepted) | ((greedy == 0) & lucky)
    return accepted & (draft >= 0)


@triton.jit
def _is_pivot(marked, num_marked, recent, drafts, first, row):  # type: ignore[no-untyped-def]
    """Whether the tokens before a row are a pivot; `marked` are sorted as unsigned numbers."""
    value = tl.full((), _HASH_OFFSET, tl.uint64)
    for back in tl.static_range(_CONTEXT, 0, -1):
        place = row - back
        drafted = tl.load(drafts + place, mask=place >= first, other=0).to(tl.int64)
        written = tl.load(recent + place - first + _CONTEXT, mask=place < first, other=0)
        token = tl.where(place >= first, drafted, written)
        value = (value ^ (token + 1).to(tl.uint64)) * _HASH_PRIME
    low, high = num_marked * 0, num_marked
    while low < high:
        middle = (low + high) // 2
        before = tl.load(marked + middle).to(tl.uint64, bitcast=True) < value
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    found = tl.load(marked + low, mask=low < num_marked, other=0).to(tl.uint64, bitcast=True)
    return (low < num_marked) & (found == value)


@triton.jit  # type: ignore[untyped-decorator]
def _walk(  # type: ignore[no-untyped-def]  # noqa: PLR0915
    drafts, ends, uniform, greedy, best, rank, ratio, prob, entropy, rules, guard_ends, guard_ids, kinds,
    progress, recent, marked, num_marked, relaxed, report, ALL_GREEDY: tl.constexpr,
):  # fmt: skip
    """Follow one request's drafts as far as they are kept."""
    request = tl.program_id(0)
    first = tl.load(ends + request - 1, mask=request > 0, other=0).to(tl.int64)
    end = tl.load(ends + request).to(tl.int64)
    first_guard = tl.load(guard_ends + request - 1, mask=request > 0, other=0)
    end_guard = tl.load(guard_ends + request)
    rule = rules + request * _RULE_COLUMNS
    relaxes = tl.load(rule + _RELAXES) > 0
    top_k, min_prob = tl.load(rule + _TOP_K), tl.load(rule + _MIN_PROB)
    min_ratio, min_entropy = tl.load(rule + _MIN_RATIO), tl.load(rule + _MIN_ENTROPY)
    max_relaxed, max_per_100 = tl.load(rule + _MAX_RELAXED), tl.load(rule + _MAX_PER_100)
    max_in_row = tl.load(rule + _MAX_IN_ROW)
    window = tl.load(rule + _WINDOW).to(tl.int64)
    guarded = tl.load(rule + _GUARDED_KINDS).to(tl.int64)
    wording_only = tl.load(rule + _WORDING_ONLY) > 0
    used = tl.load(progress + request * _PROGRESS_COLUMNS)
    written = tl.load(progress + request * _PROGRESS_COLUMNS + 1)
    quoted = tl.load(progress + request * _PROGRESS_COLUMNS + 2)
    is_greedy = True
    if not ALL_GREEDY:
        is_greedy = tl.load(greedy + request) != 0
    in_row, num_exact, num_relaxed, stopped = used * 0, used * 0, used * 0, used * 0
    given_up = min_prob * 0
    going = True
    for row in range(first, end):
        x = tl.load(drafts + row).to(tl.int64)
        going = going & (x >= 0)
        m = tl.load(best + row)
        exact = _exact(row, x, is_greedy, best, prob, uniform, ALL_GREEDY)
        share = tl.load(ratio + row)
        allowed = relaxes & (share > 0) & (share.to(tl.float64) >= min_ratio)
        allowed &= (min_prob == 0) | (tl.load(prob + row).to(tl.float64) > min_prob)
        allowed &= tl.load(rank + row) <= top_k
        allowed &= (min_entropy == 0) | (tl.load(entropy + row).to(tl.float64) >= min_entropy)
        allowed &= (window == 0) | (row + window < end)
        if going & (exact == 0) & allowed:
            for ahead in range(row + 1, tl.minimum(row + 1 + window, end)):
                x_ahead = tl.load(drafts + ahead).to(tl.int64)
                allowed &= _exact(ahead, x_ahead, is_greedy, best, prob, uniform, ALL_GREEDY)
            if wording_only:
                lately = recent + request * _CONTEXT
                allowed &= _is_pivot(marked, num_marked, lately, drafts, first, row) == 0
            for place in range(first_guard, end_guard):
                guard = tl.load(guard_ids + place)
                allowed &= (guard != x) & (guard != m)
        kind = (x * 0).to(tl.int32)
        if guarded != 0:
            kind = tl.load(kinds + tl.maximum(x, 0)).to(tl.int32)
            kind_of_best = tl.load(kinds + m).to(tl.int32)
            allowed &= ((kind | kind_of_best).to(tl.int64) & guarded) == 0
            allowed &= ((guarded & _QUOTE) == 0) | (quoted == 0)
        length = written + row - first + 1
        spent = (
            ((used + 1).to(tl.float64) > max_relaxed)
            | ((in_row + 1).to(tl.float64) > max_in_row)
            | (((used + 1) * 100).to(tl.float64) > max_per_100 * length.to(tl.float64))
        )
        relax = going & (exact == 0) & allowed & (spent == 0)
        stopped += (going & (exact == 0) & allowed & spent).to(tl.int64)
        num_exact += (going & exact).to(tl.int64)
        num_relaxed += relax.to(tl.int64)
        used += relax.to(tl.int64)
        in_row = tl.where(relax, in_row + 1, 0)
        given_up -= tl.log(tl.where(relax, share, 1.0).to(tl.float64))
        tl.store(relaxed + row, relax)
        going = going & (exact | relax)
        turned = tl.where((kind & _TURN) != 0, 1 - quoted, quoted)
        quoted = tl.where((kind & _LINE_END) != 0, quoted * 0, turned)
    out = report + request * _REPORT_COLUMNS
    tl.store(out, num_exact.to(tl.float64))
    tl.store(out + 1, num_relaxed.to(tl.float64))
    tl.store(out + 2, given_up)
    tl.store(out + 3, stopped.to(tl.float64))
