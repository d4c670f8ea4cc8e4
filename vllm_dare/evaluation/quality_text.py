"""What texts are like, without knowing what they are about: length, repetition, variety, likeness."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vllm_dare.evaluation.attributes import words
from vllm_dare.evaluation.bootstrap import Figure, mean_figure, ratio
from vllm_dare.evaluation.embeddings import similarity
from vllm_dare.evaluation.knowledge import Knowledge, KnowledgeSet
from vllm_dare.extras import need

_LONG = 4
_ROUGE_DOCUMENTS = 2000  # the subsequence takes milliseconds a text: of more, so many are compared

Figures = dict[str, Figure]
Tell = Callable[[str], None]


def length_unit(knowledge: KnowledgeSet) -> str:
    """``tokens`` where every file says how many there are, else ``words``."""
    known = all(not np.isnan(variant.lengths).any() for variant in knowledge.variants)
    return "tokens" if known else "words"


def text_figures(
    knowledge: KnowledgeSet,
    vectors: Sequence[np.ndarray],
    log_probabilities: Sequence[np.ndarray] | None,
    tell: Tell,
) -> list[Figures]:
    """The figures of each variant.

    ``length`` (mean, in `length_unit`), ``length_ratio`` (its sum over that of the baseline), ``unfinished``
    (share), ``repeated_4grams`` (the share of a text's 4-grams of words that it had before),
    ``shared_4grams`` (the share that another text of the variant has, too), ``distinct_1`` and ``distinct_2``
    (different words and pairs of words, over all in the text; after Li et al., arXiv 1510.03055),
    ``log_probability`` (a token, by the target model), and, with the baseline's text of the same id,
    ``rouge_l`` (F measure, of at most 2,000 documents) and ``similarity`` (cosine of embeddings). All
    are means over documents but the ratio; what is not known is left out.

    Args:
        knowledge: the variants.
        vectors: float32[documents, dimensions] of each variant, of length 1.
        log_probabilities: float64[documents] of each variant, NaN where it is not known; None leaves it out.
        tell: called with what is being done.
    """
    unit = length_unit(knowledge)
    base = _measures(knowledge.baseline, unit)
    if log_probabilities is not None:
        base["log_probability"] = log_probabilities[0]
    found = []
    for index, variant in enumerate(knowledge.variants):
        tell(f"comparing the texts of {variant.name}")
        own = base if index == 0 else _measures(variant, unit)
        if log_probabilities is not None and index:
            own["log_probability"] = log_probabilities[index]
        figures = {name: mean_figure(own[name], base[name] if index else None) for name in own}
        if index:
            length = ratio(own["length"], base["length"])
            figures["length_ratio"] = None if length is None else Figure(length)
            figures["rouge_l"] = mean_figure(_rouge_l_of_some(knowledge.baseline.texts, variant.texts))
            figures["similarity"] = mean_figure(similarity(vectors[0], vectors[index]))
        found.append({name: figure for name, figure in figures.items() if figure is not None})
    return found


def _measures(variant: Knowledge, unit: str) -> dict[str, np.ndarray]:
    """float64[documents] each."""
    tokens = [words(text) for text in variant.texts]
    length = variant.lengths if unit == "tokens" else np.array([float(len(found)) for found in tokens])
    return {
        "length": length,
        "unfinished": variant.unfinished,
        "repeated_4grams": np.array([1 - distinct(found, _LONG) for found in tokens]),
        "shared_4grams": shared(tokens, _LONG),
        "distinct_1": np.array([distinct(found, 1) for found in tokens]),
        "distinct_2": np.array([distinct(found, 2) for found in tokens]),
    }


def distinct(tokens: Sequence[str], size: int) -> float:
    """Different n-grams over all n-grams of one text; NaN if it is shorter than one."""
    grams = list(_grams(tokens, size))
    return len(set(grams)) / len(grams) if grams else np.nan


def shared(texts: Sequence[Sequence[str]], size: int) -> np.ndarray:
    """float64[texts]: the share of a text's different n-grams that another of the texts has, too."""
    sets = [set(_grams(tokens, size)) for tokens in texts]
    holders = Counter(gram for grams in sets for gram in grams)
    return np.array([_share(holders[gram] > 1 for gram in grams) for grams in sets])


def rouge_l(references: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """float64[texts]: the F measure of the longest common subsequence of words (package rouge-score).

    Raises:
        DareError: rouge-score is missing.
    """
    scorer: Any = need("rouge_score.rouge_scorer", "rouge-score").RougeScorer(["rougeL"])
    return np.array(
        [
            1.0 if reference == text else scorer.score(reference, text)["rougeL"].fmeasure
            for reference, text in zip(references, texts, strict=True)
        ]
    )


def _rouge_l_of_some(references: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """`rouge_l` of texts that are spread evenly over all."""
    step = -(-len(texts) // _ROUGE_DOCUMENTS)
    return rouge_l(references[::step], texts[::step])


def _grams(tokens: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(size)), strict=False)


def _share(flags: Iterator[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else np.nan
