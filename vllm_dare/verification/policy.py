"""The acceptance rule as a pure torch function: which draft tokens a relaxed request keeps."""

import torch


def relaxed_acceptance(
    logits: torch.Tensor,
    draft_token_ids: torch.Tensor,
    top_k: torch.Tensor,
    min_prob: torch.Tensor,
    min_ratio: torch.Tensor,
    stop_token_ids: torch.Tensor,
) -> torch.Tensor:
    """Which draft tokens are kept whatever vLLM's own rule says of them.

    With p the softmax of a row of `logits`, x its draft token and m the most probable token, x is kept iff

        rank_p(x) <= top_k  and  p(x) > min_prob  and  p(x) >= min_ratio * p(m)
        and neither x nor m is one of the row's stop tokens.

    Of equally probable tokens the one with the smaller id ranks first, as `argmax` has it. A masked token
    (logit -inf) is never kept. The rule of LASER (arXiv 2408.05676) is top_k 2, min_prob 0.1, min_ratio 0
    and no stop tokens.

    Args:
        logits: float32[tokens, vocab], the target's processed logits: after penalties, grammar mask and bad
            words, and for sampled requests temperature, top-k and top-p. Not changed.
        draft_token_ids: int[tokens]; a negative id is padding and never kept.
        top_k: int[tokens]; below 2 a row keeps nothing here: ranking first is what strict is about.
        min_prob, min_ratio: float32[tokens].
        stop_token_ids: int64[tokens, any], padded with -1.

    Returns:
        bool[tokens].
    """
    draft = draft_token_ids.long().clamp(min=0)
    best_logit, best = logits.max(dim=1)
    logit = logits.gather(1, draft.unsqueeze(1)).squeeze(1)
    prob = (logit - logits.logsumexp(dim=1)).exp()
    ratio = (logit - best_logit).exp()
    touches_stop = (stop_token_ids == draft.unsqueeze(1)) | (stop_token_ids == best.unsqueeze(1))
    kept = (
        (top_k >= 2)
        & (draft_token_ids >= 0)
        & torch.isfinite(logit)
        & (prob > min_prob)
        & (ratio >= min_ratio)
        & ~touches_stop.any(dim=1)
    )
    # Ranks cost two more passes over the vocabulary, so they are counted only where they decide.
    rows = (kept & (draft != best)).nonzero().squeeze(1)
    if rows.numel():
        kept[rows] = _rank(logits[rows], draft[rows]) <= top_k[rows]
    return kept


def _rank(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The rank of one token a row, 1 for the most probable; of equals the smaller id ranks first."""
    token = tokens.unsqueeze(1)
    logit = logits.gather(1, token)
    before = torch.arange(logits.shape[1], device=logits.device) < token
    return 1 + (logits > logit).sum(dim=1) + ((logits == logit) & before).sum(dim=1)


def force_tokens(logits: torch.Tensor, kept: torch.Tensor, draft_token_ids: torch.Tensor) -> None:
    """Make the kept rows one-hot at their draft token, in place.

    vLLM's unchanged kernels then accept these tokens in greedy (argmax) and sampled (p = 1) requests alike.

    Args:
        logits: float32[tokens, vocab]. kept: bool[tokens]. draft_token_ids: int[tokens].
    """
    rows = kept.nonzero().squeeze(1)
    logits[rows] = float("-inf")
    logits[rows, draft_token_ids[rows].long()] = 0.0
