"""A study: the held-out documents of a corpus replayed with every combination of settings."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vllm_dare.drafting.drafter import Drafter
from vllm_dare.errors import DareError
from vllm_dare.evaluation.corpus import Corpus
from vllm_dare.evaluation.peers import ARCTIC_SETTINGS, ArcticArm, ArcticTree, NgramArm, check_arctic
from vllm_dare.evaluation.replay import DareArm, ReplayResult, replay_arm
from vllm_dare.evaluation.split import Split
from vllm_dare.evaluation.walk import Arm, Text
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.writer import PoolContent, write_pool

DARE = "dare"
PEERS = ("arctic", "ngram")
SOURCES = ("own", "group", "global")
MAX_DRAFT = 128  # vLLM's MAX_SPEC_LEN, in vllm/v1/sample/rejection_sampler.py

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scheme:
    """One way of grouping the documents.

    Attributes:
        name: for tables.
        group_of: document id to group; ids that are not there have none.
    """

    name: str
    group_of: Mapping[str, str]


@dataclass(frozen=True)
class Setting:
    """One row of the study.

    Attributes:
        drafter: "dare" or a peer.
        max_drafts: the longest chain.
        sources: what drafts, of `SOURCES`.
        scheme: name of the grouping; None where groups play no part.
        pool_documents: how many documents the pool is made of; None where there is no pool.
    """

    drafter: str
    max_drafts: int
    sources: tuple[str, ...]
    scheme: str | None = None
    pool_documents: int | None = None

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.drafter}, {'+'.join(self.sources)}, drafts of {self.max_drafts}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "sources": list(self.sources)}


@dataclass(frozen=True)
class PoolFigures:
    """What a pool costs.

    Attributes:
        documents, tokens: what it was built from; a token counts once, be it in a group or not.
        groups: how many groups have text.
        build_seconds: from token ids to a pool that can be asked.
        disk_bytes: size of its segments, which are mapped; None for a peer, which holds it in memory.
        resident_bytes: by how much the process grew; None for this package's pools, or where the system does
            not tell.
    """

    documents: int
    tokens: int
    groups: int
    build_seconds: float
    disk_bytes: int | None = None
    resident_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The figures, and what follows from them, as JSON values."""
        num_bytes = self.disk_bytes if self.disk_bytes is not None else self.resident_bytes
        return {
            **vars(self),
            "bytes_per_token": None if num_bytes is None else num_bytes / self.tokens,
            "build_tokens_per_second": self.tokens / self.build_seconds,
        }


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one setting."""

    setting: Setting
    pool: PoolFigures | None
    result: ReplayResult

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "setting": self.setting.as_dict(),
            "pool": None if self.pool is None else self.pool.as_dict(),
            **self.result.tally.figures(),
        }


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        corpus: the documents.
        split: which of them are the pool's, and which are drafted for.
        schemes: ways of grouping them, by distinct names.
        max_drafts: lengths of the longest chain.
        sources: sets of sources, see `parse_sources`.
        pool_sizes: numbers of documents, the first of the split's.
        peers: of `PEERS`.
        limit: how many held-out documents are drafted for; None for all.

    Raises:
        DareError: a setting cannot work with this corpus.
    """

    corpus: Corpus
    split: Split
    schemes: Sequence[Scheme]
    max_drafts: Sequence[int]
    sources: Sequence[tuple[str, ...]]
    pool_sizes: Sequence[int]
    peers: Sequence[str] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        check_peers(self.peers)
        check_lengths(self.max_drafts)
        _check_pool_sizes(self.pool_sizes, len(self.split.train), self.split.train_key)
        if any("group" in sources for sources in self.sources):
            for scheme in self.schemes:
                _check_groups(scheme, self.split.train, self.held_out)

    @property
    def held_out(self) -> list[str]:
        """The ids that are drafted for."""
        return self.split.test[: self.limit]

    def settings(self) -> list[Setting]:
        """Every combination that makes a difference; those that share a pool stand together."""
        found = [
            make_setting(DARE, length, sources, scheme.name, size)
            for size, scheme, sources, length in product(
                self.pool_sizes, self.schemes, self.sources, self.max_drafts
            )
        ]
        if "arctic" in self.peers:
            found += [
                make_setting(peer.name, length, ("own", "global"), None, size)
                for size, peer, length in product(self.pool_sizes, ARCTIC_SETTINGS, self.max_drafts)
            ]
        if "ngram" in self.peers:
            found += [make_setting("ngram", length, ("own",)) for length in self.max_drafts]
        return list(dict.fromkeys(found))


def run_study(study: Study, tell: Tell | None = None) -> Iterator[Outcome]:
    """Replay the held-out documents with each setting; a pool is there while settings need it.

    Args:
        study: what to compare.
        tell: called with what is being done, and how many documents of how many are drafted for.
    """
    settings = study.settings()
    _compile(study)
    done, total = 0, len(settings) * len(study.held_out)

    def advance() -> None:
        nonlocal done
        done += 1
        report()

    def report() -> None:
        if tell is not None:
            tell(label, done, total)

    for _, sharing in groupby(settings, key=_pool_key):
        members = list(sharing)
        label = f"building the pool of {members[0].drafter}"
        report()
        with _arms(study, members) as (arms, pool):
            for setting, arm in arms:
                label = setting.label
                yield Outcome(setting, pool, replay_arm(_held_out(study, setting), arm, advance))


def parse_sources(text: str) -> tuple[str, ...]:
    """The sources of a name such as ``"group+global"``; the request's own text always drafts too.

    Raises:
        DareError: a name is none of `SOURCES`.
    """
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if name not in SOURCES:
            raise DareError(
                f"--sources takes own, group and global, joined by + as in own+group+global, not {name!r}."
            )
    return tuple(name for name in SOURCES if name in ("own", *names))


def check_peers(peers: Sequence[str]) -> None:
    """Refuse a peer that is unknown or not installed.

    Raises:
        DareError: see the message.
    """
    for peer in peers:
        if peer not in PEERS:
            raise DareError(f"--peers takes {' and '.join(PEERS)}, separated by commas, not {peer!r}.")
    if "arctic" in peers:
        check_arctic()


def check_lengths(lengths: Sequence[int]) -> None:
    """Refuse draft lengths that vLLM does not take.

    Raises:
        DareError: see the message.
    """
    for length in lengths:
        if not 1 <= length <= MAX_DRAFT:
            raise DareError(
                f"--draft takes lengths from 1 to {MAX_DRAFT}, the most that vLLM verifies, not {length}."
            )


def make_setting(
    drafter: str, length: int, sources: tuple[str, ...], scheme: str | None = None, size: int | None = None
) -> Setting:
    """A setting without what plays no part in it, so that settings which mean the same are equal."""
    return Setting(
        drafter,
        length,
        sources,
        scheme if "group" in sources else None,
        size if sources != ("own",) else None,
    )


def _pool_key(setting: Setting) -> tuple[Any, ...]:
    """What two settings must agree in to share a pool; all of ArcticInference's share its tree."""
    kind = DARE if setting.drafter == DARE else setting.drafter.split(",")[0]
    return kind, setting.sources, setting.scheme, setting.pool_documents


@contextmanager
def _arms(
    study: Study, settings: Sequence[Setting]
) -> Iterator[tuple[list[tuple[Setting, Arm]], PoolFigures | None]]:
    """The arms of settings that share a pool, and what the pool cost."""
    first = settings[0]
    pool_texts = _pool_texts(study, first)
    if first.drafter == "ngram":
        yield [(setting, NgramArm(setting.max_drafts)) for setting in settings], None
    elif first.drafter != DARE:
        started_at = time.monotonic()
        tree = ArcticTree([text.output for text in pool_texts])
        figures = _figures(pool_texts, 0, started_at, resident_bytes=tree.resident_bytes)
        presets = {preset.name: preset for preset in ARCTIC_SETTINGS}
        yield [(s, ArcticArm(tree, presets[s.drafter], s.max_drafts)) for s in settings], figures
    elif first.pool_documents is None:
        yield [(setting, _dare_arm(study, setting, None)) for setting in settings], None
    else:
        with TemporaryDirectory(prefix="vllm-dare-replay-") as folder:
            started_at = time.monotonic()
            _build(study.corpus, first.sources, pool_texts, Path(folder) / "pool")
            with RetrievalPool.open(Path(folder) / "pool") as pool:
                figures = _figures(pool_texts, len(pool.groups), started_at, disk_bytes=pool.num_bytes)
                yield [(setting, _dare_arm(study, setting, pool)) for setting in settings], figures


def _compile(study: Study) -> None:
    """Build a pool of two documents, so that no build is timed with its kernels' compilation."""
    texts = [study.corpus.texts[i] for i in study.split.train[:2]]
    with TemporaryDirectory(prefix="vllm-dare-replay-") as folder:
        _build(study.corpus, ("own", "global"), texts, Path(folder) / "pool")


def _dare_arm(study: Study, setting: Setting, pool: RetrievalPool | None) -> DareArm:
    drafter = Drafter(pool, setting.max_drafts, study.corpus.tokenizer.vocab_size)
    drafter.compile()
    return DareArm(drafter)


def _build(corpus: Corpus, sources: Sequence[str], texts: Sequence[Text], output: Path) -> None:
    """Write a pool that holds the segments of these sources and no others."""
    groups: dict[str, list[PoolDocument]] = {}
    for text in texts:
        if "group" in sources and text.group is not None:
            groups.setdefault(text.group, []).append(PoolDocument(text.output))
    write_pool(
        PoolContent(
            tokenizer=corpus.tokenizer,
            groups=dict(sorted(groups.items())),
            global_documents=[PoolDocument(text.output) for text in texts] if "global" in sources else None,
            assignments=None,
            provenance="external",
            model=None,
        ),
        output,
    )


def _figures(texts: Sequence[Text], groups: int, started_at: float, **sizes: int | None) -> PoolFigures:
    num_tokens = sum(len(text.output) for text in texts)
    return PoolFigures(len(texts), num_tokens, groups, time.monotonic() - started_at, **sizes)


def _pool_texts(study: Study, setting: Setting) -> list[Text]:
    return _grouped(study, setting, study.split.train[: setting.pool_documents or 0])


def _held_out(study: Study, setting: Setting) -> list[Text]:
    return _grouped(study, setting, study.held_out)


def _grouped(study: Study, setting: Setting, ids: Sequence[str]) -> list[Text]:
    """Some texts, with the groups of the setting's scheme."""
    groups: Mapping[str, str] = next(
        (scheme.group_of for scheme in study.schemes if scheme.name == setting.scheme), {}
    )
    return [replace(study.corpus.texts[i], group=groups.get(i)) for i in ids]


def _check_pool_sizes(sizes: Sequence[int], num_train: int, key: str) -> None:
    for size in sizes:
        if not 1 <= size <= num_train:
            raise DareError(
                f"--pool-size takes numbers from 1 to {num_train}, the documents under {key!r}, or all, "
                f"not {size}."
            )


def check_some_group(scheme: Scheme, ids: Sequence[str]) -> None:
    """Refuse the source `group` where nothing is in it.

    Raises:
        DareError: see the message.
    """
    if not any(i in scheme.group_of for i in ids):
        raise DareError(
            f"No document that could draft has a group ({scheme.name}), so that the source `group` is empty; "
            "give groups in the documents or with --assignments, or leave `group` out of --sources."
        )


def _check_groups(scheme: Scheme, train: Sequence[str], held_out: Sequence[str]) -> None:
    check_some_group(scheme, train)
    with_text = {scheme.group_of[i] for i in train if i in scheme.group_of}
    for i in held_out:
        group = scheme.group_of.get(i)
        if group is not None and group not in with_text:
            raise DareError(
                f"The group {group!r} of the held-out document {i!r} ({scheme.name}) has no text in the "
                "train part; add a document of it there, or take this one out of the split."
            )
