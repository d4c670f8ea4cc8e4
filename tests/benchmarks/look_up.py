"""What a look-up costs: beside ArcticInference's suffix tree on real text, and as the pool grows.

    .venv/bin/python -m tests.benchmarks.look_up --documents user_knowledge.jsonl.gz --split splits.json
    .venv/bin/python -m tests.benchmarks.look_up ... --grow 1,10,100

All arms walk each held-out document before any walks the next one, so that a slow minute of the machine
slows all of them, and every look-up finds the processor's caches as other work left them.

For --grow, a pool of so many million tokens is made from the documents: their first, second, … sentences in
new combinations, with one token in thirty replaced, so that it repeats itself as the documents do. Building
is timed too: seconds of processor time of one thread, and the process's peak memory. --warm-up documents of
the split's train part are walked first: what look-ups cost an engine that has served some requests before.
"""

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vllm_dare.drafting.drafter import Drafter
from vllm_dare.evaluation.corpus import Corpus, read_corpus
from vllm_dare.evaluation.peers import ARCTIC_SETTINGS, ArcticArm, ArcticTree, resident_bytes
from vllm_dare.evaluation.replay import DareArm
from vllm_dare.evaluation.split import read_split
from vllm_dare.evaluation.tally import Tally
from vllm_dare.evaluation.walk import Arm, Text, Tokens, walk
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.writer import PoolContent, write_pool

MAX_DRAFTS = 16
REPLACED = 1 / 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--tokenizer", default="mistral-v1")
    parser.add_argument("--limit", type=int, help="held-out documents to walk")
    parser.add_argument("--warm-up", type=int, default=0, help="documents to walk before any is timed")
    parser.add_argument("--grow", help="millions of pool tokens, separated by commas")
    parser.add_argument("--directory", type=Path, help="where pools are built; a temporary one by default")
    arguments = parser.parse_args()
    corpus = read_corpus([arguments.documents], arguments.tokenizer, prompts=False)
    split = read_split(arguments.split, corpus.texts, None, None)
    train = [corpus.texts[i].output for i in split.train]
    held_out = [corpus.texts[i] for i in split.test[: arguments.limit]]
    with TemporaryDirectory(dir=arguments.directory) as folder:
        if arguments.grow:
            sizes = [int(float(size) * 1e6) for size in arguments.grow.split(",")]
            arms = [_grown(corpus, train, size, Path(folder)) for size in sizes]
        else:
            tree = ArcticTree(train)
            pool = _build(corpus, train, Path(folder) / "pool")
            arms = [("dare", _arm(pool, corpus))]
            arms += [(setting.name, ArcticArm(tree, setting, MAX_DRAFTS)) for setting in ARCTIC_SETTINGS]
        _walk_all(arms, [corpus.texts[i] for i in split.train[: arguments.warm_up]])
        _print(arms, _walk_all(arms, held_out))


def _walk_all(arms: Sequence[tuple[str, Arm]], texts: Sequence[Text]) -> list[Tally]:
    tallies = [Tally(MAX_DRAFTS) for _ in arms]
    for text in texts:
        for (_, arm), tally in zip(arms, tallies, strict=True):
            session = arm.start(text)
            for step in walk(session, text, MAX_DRAFTS):
                tally.add(step)
            session.close()
    return tallies


def _print(arms: Sequence[tuple[str, Arm]], tallies: Sequence[Tally]) -> None:
    print(f"{'':24}{'tokens/step':>12}{'median µs':>11}{'p99 µs':>9}{'mean µs':>9}{'look-ups':>10}")
    for (name, _), tally in zip(arms, tallies, strict=True):
        micros = np.array(tally.nanoseconds) / 1000
        print(
            f"{name:24}{tally.tokens / tally.steps:12.3f}{np.median(micros):11.1f}"
            f"{np.percentile(micros, 99):9.1f}{micros.mean():9.1f}{len(micros):10d}"
        )


def _build(corpus: Corpus, documents: Sequence[Tokens], output: Path) -> RetrievalPool:
    content = PoolContent(
        tokenizer=corpus.tokenizer,
        groups={},
        global_documents=[PoolDocument(document) for document in documents],
        assignments=None,
        provenance="external",
        model=None,
    )
    write_pool(content, output)
    return RetrievalPool.open(output)


def _arm(pool: RetrievalPool, corpus: Corpus) -> DareArm:
    drafter = Drafter(pool, MAX_DRAFTS, corpus.tokenizer.vocab_size)
    drafter.compile()
    return DareArm(drafter)


def _grown(corpus: Corpus, documents: Sequence[Tokens], size: int, folder: Path) -> tuple[str, DareArm]:
    ends = np.array([document[-1] for document in documents])
    made = list(recombined(documents, size, full_stop=int(np.bincount(ends).argmax())))
    _build(corpus, made[:2], folder / f"compiled-{size}").close()
    began, wall = time.process_time(), time.perf_counter()
    pool = _build(corpus, made, folder / str(size))
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    del made
    pool.close()
    before = resident_bytes()
    pool = RetrievalPool.open(folder / str(size))
    after = resident_bytes()
    opened = 0 if before is None or after is None else after - before
    print(
        f"{size / 1e6:g} M tokens: built in {wall:.1f} s, {size / seconds / 1e6:.2f} M tokens a second of "
        f"processor time, {pool.num_bytes / size:.2f} bytes a token, opening adds {opened / 1e6:.1f} MB; the "
        f"process's peak is {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
        flush=True,
    )
    return f"{size / 1e6:g} M tokens", _arm(pool, corpus)


def recombined(
    documents: Sequence[Tokens], size: int, full_stop: int, sentences: int = 8
) -> Iterator[Tokens]:
    """New documents of the sentences of these, `size` tokens in all; a pure function of its arguments.

    The n-th sentence of a new document is the n-th one of some document.
    """
    rng = np.random.default_rng(0)
    split = [np.split(document, np.flatnonzero(document == full_stop) + 1) for document in documents]
    every = np.concatenate(documents)
    written = 0
    while written < size:
        chosen = [split[i] for i in rng.integers(len(split), size=sentences)]
        parts = [parts[place] for place, parts in enumerate(chosen) if place < len(parts)]
        document = np.concatenate(parts)[: size - written]
        replaced = rng.random(len(document)) < REPLACED
        document[replaced] = every[rng.integers(len(every), size=int(replaced.sum()))]
        written += len(document)
        if len(document):
            yield document


if __name__ == "__main__":
    main()
