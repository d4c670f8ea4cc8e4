"""`vllm-dare evaluate`: does quality hold when text is generated with drafts, or verified relaxed?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.errors import ConfigError, DareError
from vllm_dare.evaluation import bootstrap, downstream
from vllm_dare.evaluation.attributes import Stated, Vocabulary, make_vocabulary, read_vocabulary, stated
from vllm_dare.evaluation.downstream import Ranking, Split, UserText, check_split, rank
from vllm_dare.evaluation.embeddings import DIMENSIONS, Embedder, SentenceEmbedder, TfidfEmbedder, reduced
from vllm_dare.evaluation.interactions import Columns, Interactions, Items, read_interactions, read_items
from vllm_dare.evaluation.knowledge import KnowledgeSet, read_knowledge
from vllm_dare.evaluation.quality_content import attribute_records, content_figures, read_history
from vllm_dare.evaluation.quality_text import Figures, length_unit, text_figures
from vllm_dare.evaluation.quality_verdict import Limits, Verdict, judge
from vllm_dare.extras import need
from vllm_dare.generation.prompts import id_key, read_prompts
from vllm_dare.generation.settings import EngineSettings
from vllm_dare.pool.files import sha256

Tell = Callable[[str], None]

_PACKAGES = ("scikit-learn", "rouge-score", "sentence-transformers")


@dataclass(frozen=True)
class Plan:
    """What is compared, and by what.

    Attributes:
        files: name to knowledge file, the baseline first.
        items: the item table; with it, ``attribute`` is its column. Without it, content is compared only if
            there is a ``vocabulary``.
        vocabulary: a file of values, instead of the items'.
        interactions: needs ``items``; without it, nothing is held against what users did.
        id_prefix: what document ids begin with and user ids do not.
        prompts, engine: both, to score texts by the target model; None leaves that out.
        embedding_model: of sentence-transformers; None takes TF-IDF.
        seeds, split: of the ranking models, see `downstream.rank`.
        limits: for the verdicts.
    """

    files: Mapping[str, Path]
    items: Path | None = None
    attribute: str | None = None
    item_id_column: str | None = None
    vocabulary: Path | None = None
    interactions: Path | None = None
    columns: Columns = field(default_factory=Columns)
    id_prefix: str = ""
    prompts: Path | None = None
    engine: EngineSettings | None = None
    embedding_model: str | None = None
    seeds: int = 5
    split: Split = "row"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if (self.items is None) != (self.attribute is None):
            raise ConfigError(
                "--items and --attribute go together: give the file and its column, or neither."
            )
        if self.interactions is not None and self.items is None:
            raise ConfigError("--interactions needs --items FILE and --attribute COLUMN: what users liked.")
        if self.engine is not None and self.prompts is None:
            raise ConfigError("--model scores texts after their prompts: give --prompts FILE, too.")
        check_split(self.split, self.columns.time)

    def as_dict(self) -> dict[str, Any]:
        """The settings, as JSON values."""
        paths = ("items", "vocabulary", "interactions", "prompts")
        return {
            **{name: _text(getattr(self, name)) for name in paths},
            "attribute": self.attribute,
            "columns": asdict(self.columns),
            "id_prefix": self.id_prefix,
            "model": None if self.engine is None else self.engine.model,
            "embedding_model": self.embedding_model,
            "seeds": self.seeds,
            "split": self.split,
            "limits": asdict(self.limits),
            "confidence": bootstrap.CONFIDENCE,
            "resamples": bootstrap.RESAMPLES,
            "resamples_of_ranking": downstream.RESAMPLES,
        }


@dataclass(frozen=True)
class VariantQuality:
    """Everything found about one variant.

    Attributes:
        name, file: see `Plan.files`.
        text: see `quality_text.text_figures`.
        content: see `quality_content.content_figures`; empty without a vocabulary.
        attributes: see `quality_content.attribute_records`; empty for the baseline.
        ranking: None without interactions.
        verdict: None for the baseline.
    """

    name: str
    file: Path
    text: Figures
    content: Figures
    attributes: Sequence[dict[str, Any]]
    ranking: Ranking | None
    verdict: Verdict | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        ranking = None
        if self.ranking is not None:
            figures = {name: figure.as_dict() for name, figure in self.ranking.figures.items()}
            ranking = {**figures, "auc_by_seed": list(self.ranking.seeds)}
        return {
            "name": self.name,
            "file": str(self.file),
            "sha256": sha256(self.file),
            "text": {name: figure.as_dict() for name, figure in self.text.items()},
            "content": {name: figure.as_dict() for name, figure in self.content.items()},
            "attributes": list(self.attributes),
            "ranking": ranking,
            "verdict": None if self.verdict is None else self.verdict.as_dict(),
        }


@dataclass(frozen=True)
class _Users:
    """The tables beside the texts; None where they were not given."""

    vocabulary: Vocabulary | None
    items: Items | None
    interactions: Interactions | None


def check_inputs(plan: Plan, prompts: Path | None = None, limit: int | None = None) -> None:
    """Find what cannot work before any text is generated or read.

    Args:
        plan: see `evaluate`.
        prompts, limit: the prompts of the texts, if these are still to be generated.

    Raises:
        DareError: a package is missing, or a table that texts are held against cannot be used.
    """
    need("rouge_score.rouge_scorer", "rouge-score")
    need("sklearn", "scikit-learn")
    _read_users(plan, None if prompts is None else [str(row.id) for row in read_prompts(prompts, limit)])


def evaluate(plan: Plan, origin: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Compare every variant with the baseline.

    Args:
        plan: what.
        origin: `bench_provenance.provenance` as the run began.
        tell: called with what is being done.

    Returns:
        the result file's content: JSON values.

    Raises:
        DareError: see the message.
    """
    tell("reading")
    knowledge = read_knowledge(plan.files)
    users = _read_users(plan, knowledge.ids)
    scores = _scores(plan, knowledge, tell)  # first: the engine is gone before anything else takes memory
    embedder = _embedder(plan, knowledge)
    tell("embedding the texts")
    vectors = [embedder.embed(variant.texts) for variant in knowledge.variants]
    text = text_figures(knowledge, vectors, scores, tell)
    content, attributes = _content(knowledge, users, tell)
    rankings = _rankings(plan, knowledge, users, embedder, vectors, tell)
    variants = []
    for index, variant in enumerate(knowledge.variants):
        figures = {**text[index], **content[index]}
        ranking = rankings[index]
        if ranking is not None:
            figures |= ranking.figures
        verdict = judge(figures, plan.limits) if index else None
        found = (text[index], content[index], attributes[index], ranking, verdict)
        variants.append(VariantQuality(variant.name, variant.file, *found))
    return _result(plan, origin, knowledge, users, embedder, variants)


def _read_users(plan: Plan, ids: Sequence[str] | None) -> _Users:
    """The tables, interactions only if it is known whose."""
    items = vocabulary = interactions = None
    if plan.items is not None and plan.attribute is not None:
        items = read_items(plan.items, plan.attribute, plan.item_id_column)
        vocabulary = make_vocabulary({value: () for value in items.values})
    if plan.vocabulary is not None:
        vocabulary = read_vocabulary(plan.vocabulary)
    if plan.interactions is not None and items is not None and ids is not None:
        interactions = read_interactions(plan.interactions, items, ids, plan.columns, plan.id_prefix)
    return _Users(vocabulary, items, interactions)


def _scores(plan: Plan, knowledge: KnowledgeSet, tell: Tell) -> list[np.ndarray] | None:
    if plan.engine is None or plan.prompts is None:
        return None
    from vllm_dare.evaluation.target_score import score

    prompts = {id_key(row.id): row for row in read_prompts(plan.prompts)}
    if not any(id_key(i) in prompts for i in knowledge.ids):
        raise DareError(f"{plan.prompts} has no prompt for any of these ids; give the prompts of the texts.")
    return score(knowledge, prompts, plan.engine, tell)


def _embedder(plan: Plan, knowledge: KnowledgeSet) -> Embedder:
    if plan.embedding_model is not None:
        return SentenceEmbedder(plan.embedding_model)
    return TfidfEmbedder(knowledge.baseline.texts)


def _content(
    knowledge: KnowledgeSet, users: _Users, tell: Tell
) -> tuple[list[Figures], list[list[dict[str, Any]]]]:
    """Figures and attribute records of each variant; empty without a vocabulary."""
    variants, vocabulary = knowledge.variants, users.vocabulary
    if vocabulary is None:
        return [{} for _ in variants], [[] for _ in variants]
    tell("comparing what the texts state")
    history = None
    if users.interactions is not None and users.items is not None:
        history = read_history(users.interactions, users.items, vocabulary.values, len(knowledge.ids))
    found = [stated(vocabulary, variant.texts) for variant in variants]
    figures = [content_figures(found[0], one, history, index == 0) for index, one in enumerate(found)]
    records = [attribute_records(vocabulary.values, found[0], one) for one in found[1:]]
    return figures, [[], *records]


def _rankings(
    plan: Plan,
    knowledge: KnowledgeSet,
    users: _Users,
    embedder: Embedder,
    vectors: Sequence[np.ndarray],
    tell: Tell,
) -> Sequence[Ranking | None]:
    if users.interactions is None or users.items is None:
        return [None] * len(vectors)
    vocabulary = make_vocabulary({value: () for value in users.items.values})
    *texts, values = reduced(vectors[0], [*vectors, embedder.embed(users.items.values)], DIMENSIONS)
    found: list[Stated] = [stated(vocabulary, variant.texts) for variant in knowledge.variants]
    user_texts = [UserText(vector, values, one) for vector, one in zip(texts, found, strict=True)]
    interactions = users.interactions.of_documents()
    return rank(user_texts, interactions, users.items, seeds=plan.seeds, split=plan.split, tell=tell)


def _result(
    plan: Plan,
    origin: Mapping[str, Any],
    knowledge: KnowledgeSet,
    users: _Users,
    embedder: Embedder,
    variants: Sequence[VariantQuality],
) -> dict[str, Any]:
    mine = None if users.interactions is None else users.interactions.of_documents()
    versions = origin["versions"] | {name: _version(name) for name in _PACKAGES}
    return {
        "command": "evaluate",
        "provenance": {**origin, "versions": versions},
        "settings": plan.as_dict(),
        "documents": len(knowledge.ids),
        "left_out": knowledge.left_out,
        "failed": dict(knowledge.failed),
        "length_unit": length_unit(knowledge),
        "embedding": embedder.name,
        "vocabulary": None if users.vocabulary is None else list(users.vocabulary.values),
        "interactions": None if mine is None else {"users": mine.num_users, "rows": len(mine.labels)},
        "variants": [variant.as_dict() for variant in variants],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
