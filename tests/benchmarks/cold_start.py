"""Learning from nothing against a pool of the same text: tokens per step once so many documents were served.

    .venv/bin/python -m tests.benchmarks.cold_start --documents user_knowledge.jsonl.gz --split splits.json

Some documents of the train part, picked at random, are drafted for in turn, each from those before it. Then
the held-out documents are drafted for from what was learned, and from a pool built of the same documents.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vllm_dare.drafting.drafter import Drafter
from vllm_dare.evaluation.corpus import Corpus, read_corpus
from vllm_dare.evaluation.order import LearningArm
from vllm_dare.evaluation.replay import DareArm, replay
from vllm_dare.evaluation.split import read_split
from vllm_dare.evaluation.walk import Session, Text
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.writer import PoolContent, write_pool

MAX_DRAFTS = 16
SOURCES = ("own", "global")


class Learned:
    """Drafts from what another arm has learned, and learns nothing itself."""

    name = "learned"
    max_drafts = MAX_DRAFTS

    def __init__(self, arm: LearningArm) -> None:
        self._arm = arm

    def start(self, text: Text) -> Session:
        session = self._arm.start(text)
        session.close = lambda: None  # type: ignore[method-assign]
        return session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--tokenizer", default="mistral-v1")
    parser.add_argument("--number", type=int, default=500, help="documents that are learned")
    parser.add_argument("--seeds", type=int, default=3, help="how often other ones are picked")
    arguments = parser.parse_args()
    corpus = read_corpus([arguments.documents], arguments.tokenizer, prompts=False)
    split = read_split(arguments.split, corpus.texts, None, None)
    held_out = [corpus.texts[i] for i in split.test]
    for seed in range(arguments.seeds):
        picked = np.random.default_rng(seed).permutation(len(split.train))[: arguments.number]
        _compare(corpus, [corpus.texts[split.train[i]] for i in picked], held_out)


def _compare(corpus: Corpus, documents: Sequence[Text], held_out: Sequence[Text]) -> None:
    learning = LearningArm(corpus.tokenizer.vocab_size, MAX_DRAFTS, SOURCES)
    (while_learning,) = replay(documents, [learning])
    with TemporaryDirectory() as folder:
        content = PoolContent(
            tokenizer=corpus.tokenizer,
            groups={},
            global_documents=[PoolDocument(document.output) for document in documents],
            assignments=None,
            provenance="external",
            model=None,
        )
        write_pool(content, Path(folder) / "pool")
        with RetrievalPool.open(Path(folder) / "pool") as pool:
            static = DareArm(Drafter(pool, MAX_DRAFTS, corpus.tokenizer.vocab_size))
            learned, built = replay(held_out, [Learned(learning), static])
    print(
        f"tokens per step: {while_learning.tokens_per_step:.3f} while learning {len(documents)} documents, "
        f"then {learned.tokens_per_step:.3f}; {built.tokens_per_step:.3f} from a pool of them: "
        f"{learned.tokens_per_step / built.tokens_per_step:.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
