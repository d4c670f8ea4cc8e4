"""The acceptance rule on CPU: which draft tokens of a batch are kept that vLLM's own rule would reject.

Torch finds the largest logit of each row; numba walks each request's drafts, as vLLM's kernels do, and reads
more of a row only where the decision hangs on it. The rule itself is `VerificationConfig`'s; the CUDA kernels
beside this file do the same and are tested against it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from vllm_dare.pool.kernels import CACHE
from vllm_dare.pool.pivots import CONTEXT, HASH_OFFSET, HASH_PRIME
from vllm_dare.verification.rows import entropy_of, rank_of, sum_of_shares, token_of
from vllm_dare.verification.rule import VerificationConfig

# A rule as a row of float64: `rule_row` makes it, `_walk` reads it.
(
    RELAXES,
    TOP_K,
    MIN_PROB,
    MIN_RATIO,
    MIN_ENTROPY,
    WINDOW,
    MAX_RELAXED,
    MAX_PER_100,
    MAX_IN_ROW,
    GUARDED_KINDS,
    WORDING_ONLY,
) = range(11)
NUM_RULE_COLUMNS = 11
# What a token is, as bits of the table of kinds; GUARDED_KINDS says which of them a rule never relaxes.
# TURN: an odd number of quotation marks, which opens or closes a quotation.
DIGIT, JSON, QUOTE, TURN, LINE_END = 1, 2, 4, 8, 16
# What a request brings along from earlier steps.
USED, WRITTEN, QUOTED = range(3)
NUM_PROGRESS_COLUMNS = 3
# What is reported of a request's step.
EXACT, RELAXED, GIVEN_UP, STOPPED = range(4)
NUM_REPORT_COLUMNS = 4
_NO_NUMBERS = np.zeros(0, np.float64)


def rule_row(rule: VerificationConfig) -> npt.NDArray[np.float64]:
    """A rule as float64[NUM_RULE_COLUMNS]; what it does not bound is infinite."""
    row = np.full(NUM_RULE_COLUMNS, np.inf)
    row[RELAXES] = rule.relaxes
    row[MIN_PROB], row[MIN_RATIO] = rule.min_prob, rule.min_ratio
    row[MIN_ENTROPY], row[WINDOW] = rule.min_entropy, rule.window
    for column, most in (
        (TOP_K, rule.top_k),
        (MAX_RELAXED, rule.max_relaxed),
        (MAX_PER_100, rule.max_relaxed_per_100),
        (MAX_IN_ROW, rule.max_relaxed_in_row),
    ):
        if most is not None:
            row[column] = most
    kinds = {"digits": DIGIT, "json": JSON, "quoted": QUOTE}
    row[GUARDED_KINDS] = sum(kinds[kind] for kind in set(rule.protect))
    row[WORDING_ONLY] = rule.wording_only
    return row


@dataclass(frozen=True)
class BatchRules:
    """What the rules of a batch's requests say, and where the requests stand.

    Attributes:
        rules: float64[requests, NUM_RULE_COLUMNS], see `rule_row`.
        guard_ends: int64[requests]; guard_ids: int64[any]: the ids that a request never relaxes, sorted,
            request after request.
        kinds: uint8[vocab], what each token is; of length 0 where no rule asks.
        progress: int64[requests, NUM_PROGRESS_COLUMNS]: tokens relaxed and written so far, and whether a
            quotation is open.
        recent: int64[requests, CONTEXT], the last tokens that each request has written, `BEGIN` before its
            first.
        pivots: uint64[any], see `vllm_dare.pool.pivots.find_pivots`.
    """

    rules: npt.NDArray[np.float64]
    guard_ends: npt.NDArray[np.int64]
    guard_ids: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    progress: npt.NDArray[np.int64]
    recent: npt.NDArray[np.int64]
    pivots: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Verdict:
    """What is decided of a batch, on the device of its logits.

    Attributes:
        relaxed: bool[tokens], the draft tokens to be kept though vLLM's rule rejects them.
        logit: float32[tokens], the logit of each draft token (of token 0 for padding); tops: float32[tokens],
            the largest logit of its row.
        report: float64[requests, NUM_REPORT_COLUMNS]: draft tokens that vLLM's rule accepts before the chain
            ends, tokens relaxed, the log-probability given up by relaxing (the sum of log p(m) - log p(x),
            in nats), and 1 if a spent budget ended the chain.
        keeps_nothing: whether it is known already that `relaxed` is all false.
    """

    relaxed: torch.Tensor
    logit: torch.Tensor
    tops: torch.Tensor
    report: torch.Tensor
    keeps_nothing: bool = False


def verify(
    logits: torch.Tensor,
    draft_token_ids: torch.Tensor,
    draft_ends: torch.Tensor,
    uniform: torch.Tensor | None,
    greedy: torch.Tensor | None,
    batch: BatchRules,
) -> Verdict:
    """Decide a batch: one pass over the logits, and further ones over rows that are reached and need it.

    Args:
        logits: float32[tokens, vocab] on the CPU, the target's processed logits: after penalties, grammar
            mask and bad words, and for sampled requests temperature, top-k and top-p. Not changed.
        draft_token_ids: int[tokens]; a negative id is padding, at which a chain ends.
        draft_ends: int[requests], where each request's draft tokens end.
        uniform: float64[tokens], the random numbers with which vLLM's rule accepts the token of a sampled
            request, iff p(x) >= uniform; None where all requests are greedy.
        greedy: bool[requests], or None where all are.
        batch: the requests' rules.
    """
    draft = draft_token_ids.numpy()
    tops = logits.amax(dim=1)
    requests = len(draft_ends)
    relaxed = np.zeros(len(draft), np.bool_)
    report = np.zeros((requests, NUM_REPORT_COLUMNS))
    _walk(
        logits.numpy(),
        draft,
        draft_ends.numpy(),
        tops.numpy(),
        _NO_NUMBERS if uniform is None else uniform.numpy(),
        np.ones(requests, np.bool_) if greedy is None else greedy.numpy(),
        batch.rules,
        batch.guard_ends,
        batch.guard_ids,
        batch.kinds,
        batch.progress,
        batch.recent,
        batch.pivots,
        relaxed,
        report,
    )
    logit = logits.gather(1, draft_token_ids.long().clamp_(min=0).unsqueeze(1)).squeeze(1)
    return Verdict(
        torch.from_numpy(relaxed), logit, tops, torch.from_numpy(report), keeps_nothing=not relaxed.any()
    )


def force_tokens(logits: torch.Tensor, draft_token_ids: torch.Tensor, verdict: Verdict) -> None:
    """Raise the kept tokens' logits so far that they have all the probability, in place.

    vLLM's unchanged kernels then accept them in greedy (argmax) and sampled (p = 1) requests alike.
    """
    raised = torch.where(verdict.relaxed, verdict.tops + 1e4, verdict.logit)  # e ** -1e4 is 0 in float32
    _put(logits, draft_token_ids, raised)


def restore_tokens(logits: torch.Tensor, draft_token_ids: torch.Tensor, verdict: Verdict) -> None:
    """Take back what `force_tokens` did."""
    _put(logits, draft_token_ids, verdict.logit)


def _put(logits: torch.Tensor, draft_token_ids: torch.Tensor, values: torch.Tensor) -> None:
    logits.scatter_(1, draft_token_ids.long().clamp(min=0).unsqueeze(1), values.unsqueeze(1))


@njit(nogil=True, cache=CACHE)
def _is_listed(ids, first, end, token):  # type: ignore[no-untyped-def]
    place = first + np.searchsorted(ids[first:end], token)
    return place < end and ids[place] == token


@njit(nogil=True, cache=CACHE)
def _is_pivot(pivots, recent, draft, first, row):  # type: ignore[no-untyped-def]
    """Whether the tokens before a row are a pivot, as `hash_contexts` has it."""
    value = HASH_OFFSET
    for place in range(row - CONTEXT, row):
        token = draft[place] if place >= first else recent[place - first + CONTEXT]
        value = (value ^ np.uint64(token + 1)) * HASH_PRIME
    found = np.searchsorted(pivots, value)
    return found < len(pivots) and pivots[found] == value


@njit(nogil=True, cache=CACHE)
def _after(kinds, token, quoted):  # type: ignore[no-untyped-def]
    """Whether a quotation is open after a token; one that is never closed ends with its line."""
    if kinds[token] & LINE_END:
        return 0
    return 1 - quoted if kinds[token] & TURN else quoted


@njit(nogil=True, cache=CACHE)
def _is_exact(row, x, top, greedy, number, total):  # type: ignore[no-untyped-def]
    """Whether vLLM's own rule accepts x: the first of the most probable tokens, or p(x) >= its random number.

    Args:
        total: `sum_of_shares` of the row where it is known, else 0.

    Returns:
        (whether it does, that sum if it is known now, else 0).
    """
    if x < 0:
        return False, total
    if greedy:
        return row[x] == top and token_of(row[: x + 1], top) == x, total
    share = np.exp(row[x] - top)
    if not share >= number:  # p(x) is at most p(x) / p(m)
        return False, total
    if total == 0:
        total = sum_of_shares(row, top)
    return share >= number * total, total


@njit(nogil=True, cache=CACHE)
def _may_relax(row, x, top, rule, total):  # type: ignore[no-untyped-def]
    """Whether probabilities allow to keep x; returns (whether they do, `sum_of_shares` or 0)."""
    share = np.exp(row[x] - top)
    if not (rule[RELAXES] > 0 and share > 0 and share >= rule[MIN_RATIO] and share > rule[MIN_PROB]):
        return False, total
    if total == 0 and (rule[MIN_PROB] > 0 or rule[MIN_ENTROPY] > 0):
        total = sum_of_shares(row, top)
    if rule[MIN_PROB] > 0 and not share > rule[MIN_PROB] * total:
        return False, total
    if rule[TOP_K] < len(row) and rank_of(row, x) > rule[TOP_K]:
        return False, total
    if rule[MIN_ENTROPY] > 0 and entropy_of(row, top, total) < rule[MIN_ENTROPY]:
        return False, total
    return True, total


@njit(nogil=True, cache=CACHE)
def _walk(  # type: ignore[no-untyped-def]  # noqa: PLR0912
    logits,
    draft,
    ends,
    tops,
    uniform,
    greedy,
    rules,
    guard_ends,
    guard_ids,
    kinds,
    progress,
    recent,
    pivots,
    relaxed,
    report,
):
    """Follow each request's drafts as far as they are kept, and put down which are relaxed."""
    first, first_guard = 0, 0
    for request in range(len(ends)):
        rule, end, guards = rules[request], ends[request], guard_ends[request]
        used, quoted = progress[request, USED], progress[request, QUOTED]
        guarded_kinds, window = int(rule[GUARDED_KINDS]), int(rule[WINDOW])
        in_row = 0
        for row in range(first, end):
            x, top = draft[row], tops[row]
            number = 0.0 if greedy[request] else uniform[row]
            exact, total = _is_exact(logits[row], x, top, greedy[request], number, 0.0)
            if exact:
                report[request, EXACT] += 1
                in_row = 0
            else:
                if x < 0 or (window > 0 and row + window >= end):
                    break
                if rule[WORDING_ONLY] and _is_pivot(pivots, recent[request], draft, first, row):
                    break
                if guarded_kinds & QUOTE and quoted:
                    break
                allowed, _ = _may_relax(logits[row], x, top, rule, total)
                if not allowed:
                    break
                m = token_of(logits[row], top)
                if guarded_kinds and (kinds[x] | kinds[m]) & guarded_kinds:
                    break
                if _is_listed(guard_ids, first_guard, guards, x) or _is_listed(
                    guard_ids, first_guard, guards, m
                ):
                    break
                agreed = 0
                for ahead in range(row + 1, row + 1 + window):
                    number = 0.0 if greedy[request] else uniform[ahead]
                    agrees, _ = _is_exact(
                        logits[ahead], draft[ahead], tops[ahead], greedy[request], number, 0.0
                    )
                    agreed += agrees
                if agreed < window:
                    break
                length = progress[request, WRITTEN] + row - first + 1
                if (
                    used + 1 > rule[MAX_RELAXED]
                    or in_row + 1 > rule[MAX_IN_ROW]
                    or (used + 1) * 100 > rule[MAX_PER_100] * length
                ):
                    report[request, STOPPED] = 1
                    break
                used += 1
                in_row += 1
                relaxed[row] = True
                report[request, RELAXED] += 1
                report[request, GIVEN_UP] += np.float64(top) - np.float64(logits[row, x])
            if guarded_kinds & QUOTE:
                quoted = _after(kinds, x, quoted)
        first, first_guard = end, guards
