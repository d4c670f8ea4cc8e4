"""The acceptance rule on CPU: which draft tokens of a batch are kept that vLLM's own rule would reject.

Torch reads the logits; numba walks each request's drafts, as vLLM's kernels do, and looks at a row again
only where the rule hangs on it. The rule itself is `VerificationConfig`'s; the CUDA kernels beside this file
do the same and are tested against it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from vllm_dare.pool.pivots import CONTEXT, HASH_OFFSET, HASH_PRIME
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
# Rows whose probabilities are summed at a time: a megabyte of logits stays in a core's cache.
_LOGITS_AT_A_TIME = 2**18


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
    """

    relaxed: torch.Tensor
    logit: torch.Tensor
    tops: torch.Tensor
    report: torch.Tensor


def verify(
    logits: torch.Tensor,
    draft_token_ids: torch.Tensor,
    draft_ends: torch.Tensor,
    uniform: torch.Tensor | None,
    greedy: torch.Tensor | None,
    batch: BatchRules,
) -> Verdict:
    """Decide a batch: one pass over the logits, and further ones over the few rows that need it.

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
    draft = draft_token_ids.long()
    tops, best = logits.max(dim=1)
    logit = logits.gather(1, draft.clamp(min=0).unsqueeze(1)).squeeze(1)
    ends = draft_ends.numpy().astype(np.int64)
    is_greedy = np.ones(len(ends), bool) if greedy is None else greedy.numpy()
    numbers = np.full(len(draft), 2.0) if uniform is None else uniform.numpy()
    ratio = (logit - tops).exp_().nan_to_num_(0.0)
    prob = np.full(len(draft), -1.0, np.float32)
    rows = _rows_that_need_prob(
        draft.numpy(), best.numpy(), ends, ratio.numpy(), numbers, is_greedy, batch.rules
    )
    _probabilities(logits, rows, ratio, tops, prob)
    relaxed = np.zeros(len(draft), np.bool_)
    report = np.zeros((len(ends), NUM_REPORT_COLUMNS))
    _walk(
        logits.numpy(),
        draft.numpy(),
        best.numpy(),
        ends,
        ratio.numpy(),
        prob,
        numbers,
        is_greedy,
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
    return Verdict(torch.from_numpy(relaxed), logit, tops, torch.from_numpy(report))


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


def _probabilities(
    logits: torch.Tensor,
    rows: npt.NDArray[np.int64],
    ratio: torch.Tensor,
    tops: torch.Tensor,
    prob: npt.NDArray[np.float32],
) -> None:
    """Put down p(x) of some rows: x's share of p(m), divided by the sum of all such shares."""
    at_a_time = max(1, _LOGITS_AT_A_TIME // logits.shape[1])
    for first in range(0, len(rows), at_a_time):
        some = rows[first : first + at_a_time]
        consecutive = some[-1] - some[0] + 1 == len(some)
        part = logits[int(some[0]) : int(some[-1]) + 1] if consecutive else logits[torch.from_numpy(some)]
        shares = (part - tops[some].unsqueeze(1)).exp_().sum(dim=1)
        prob[some] = (ratio[some] / shares).numpy()


@njit(nogil=True, cache=True)
def _rows_that_need_prob(draft, best, ends, ratio, uniform, greedy, rules):  # type: ignore[no-untyped-def]
    """The rows where p(x) decides: whether vLLM's rule accepts x, or whether it exceeds a minimum.

    p(x) is at most p(x) / p(m), so that most wrong drafts need no look. A chain that must end at a row needs
    none behind it.
    """
    rows = np.empty(len(draft), np.int64)
    number = 0
    first = 0
    for request in range(len(ends)):
        rule = rules[request]
        lowest = max(rule[MIN_PROB], rule[MIN_RATIO])
        for row in range(first, ends[request]):
            if draft[row] < 0:
                break
            may_relax = rule[RELAXES] > 0 and ratio[row] > 0 and ratio[row] >= lowest
            if greedy[request]:
                may_be_exact = draft[row] == best[row]
                needed = may_relax and not may_be_exact and rule[MIN_PROB] > 0
            else:
                may_be_exact = uniform[row] <= ratio[row]
                needed = may_be_exact or (may_relax and rule[MIN_PROB] > 0)
            needed = needed or (may_relax and rule[MIN_ENTROPY] > 0)
            if needed:
                rows[number] = row
                number += 1
            if not may_be_exact and not may_relax:
                break
        first = ends[request]
    return rows[:number]


@njit(nogil=True, cache=True)
def _rank(logits, token):  # type: ignore[no-untyped-def]
    """The rank of a token in a row, 1 for the most probable; of equals the smaller id ranks first."""
    logit = logits[token]
    rank = 1
    for other in range(len(logits)):
        rank += logits[other] > logit
    for other in range(token):
        rank += logits[other] == logit
    return rank


@njit(nogil=True, cache=True)
def _entropy(logits, logit, prob):  # type: ignore[no-untyped-def]
    """-sum p log p of a row's three most probable tokens, in nats, from one token's logit and probability."""
    first, second, third = -np.inf, -np.inf, -np.inf
    for value in logits:
        if value > first:
            first, second, third = value, first, second
        elif value > second:
            second, third = value, second
        elif value > third:
            third = value
    entropy = 0.0
    for value in (first, second, third):
        p = prob * np.exp(np.float64(value - logit))
        if p > 0:
            entropy -= p * np.log(p)
    return entropy


@njit(nogil=True, cache=True)
def _is_listed(ids, first, end, token):  # type: ignore[no-untyped-def]
    place = first + np.searchsorted(ids[first:end], token)
    return place < end and ids[place] == token


@njit(nogil=True, cache=True)
def _is_pivot(pivots, recent, draft, first, row):  # type: ignore[no-untyped-def]
    """Whether the tokens before a row are a pivot, as `hash_contexts` has it."""
    value = HASH_OFFSET
    for place in range(row - CONTEXT, row):
        token = draft[place] if place >= first else recent[place - first + CONTEXT]
        value = (value ^ np.uint64(token + 1)) * HASH_PRIME
    found = np.searchsorted(pivots, value)
    return found < len(pivots) and pivots[found] == value


@njit(nogil=True, cache=True)
def _after(kinds, token, quoted):  # type: ignore[no-untyped-def]
    """Whether a quotation is open after a token; one that is never closed ends with its line."""
    if kinds[token] & LINE_END:
        return 0
    return 1 - quoted if kinds[token] & TURN else quoted


@njit(nogil=True, cache=True)
def _walk(  # type: ignore[no-untyped-def]  # noqa: PLR0912
    logits,
    draft,
    best,
    ends,
    ratio,
    prob,
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
    exact = np.empty(len(draft), np.bool_)
    for request in range(len(ends)):
        rule, end = rules[request], ends[request]
        for row in range(first, end):
            exact[row] = draft[row] >= 0 and (
                draft[row] == best[row] if greedy[request] else prob[row] >= uniform[row]
            )
        used, quoted = progress[request, USED], progress[request, QUOTED]
        guarded_kinds, window = int(rule[GUARDED_KINDS]), int(rule[WINDOW])
        in_row = 0
        for row in range(first, end):
            x, m = draft[row], best[row]
            if x < 0:
                break
            if exact[row]:
                report[request, EXACT] += 1
                in_row = 0
            else:
                if rule[RELAXES] == 0 or not ratio[row] > 0 or ratio[row] < rule[MIN_RATIO]:
                    break
                if rule[MIN_PROB] > 0 and not prob[row] > rule[MIN_PROB]:
                    break
                if row + window >= end and window > 0:
                    break
                if not np.all(exact[row + 1 : row + 1 + window]):
                    break
                if guarded_kinds and (kinds[x] | kinds[m]) & guarded_kinds:
                    break
                if guarded_kinds & QUOTE and quoted:
                    break
                if rule[WORDING_ONLY] and _is_pivot(pivots, recent[request], draft, first, row):
                    break
                guards = guard_ends[request]
                if _is_listed(guard_ids, first_guard, guards, x) or _is_listed(
                    guard_ids, first_guard, guards, m
                ):
                    break
                if rule[TOP_K] < logits.shape[1] and x != m and _rank(logits[row], x) > rule[TOP_K]:
                    break
                if (
                    rule[MIN_ENTROPY] > 0
                    and _entropy(logits[row], logits[row, x], prob[row]) < rule[MIN_ENTROPY]
                ):
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
                report[request, GIVEN_UP] -= np.log(np.float64(ratio[row]))
            if guarded_kinds & QUOTE:
                quoted = _after(kinds, x, quoted)
        first, first_guard = end, guard_ends[request]
