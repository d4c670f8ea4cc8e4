"""What pruning costs: tokens per step of held-out documents from pools of a part of the tokens.

    .venv/bin/python -m tests.benchmarks.prune --documents user_knowledge.jsonl.gz --split splits.json

Compared at the same number of tokens: documents at random, the newest documents (the last of the file), and
`vllm-dare pool prune`, with its own blend (that of the full pool) and with one that is fitted anew on the
pruned pool. `--hold-out 300` drafts for so many documents of the train part instead, which are then in no
pool: constants of `vllm_dare.pool.coverage` were chosen so, without a look at the test part.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vllm_dare.drafting.drafter import Drafter
from vllm_dare.evaluation.corpus import Corpus, read_corpus
from vllm_dare.evaluation.replay import DareArm, replay_arm
from vllm_dare.evaluation.split import read_split
from vllm_dare.evaluation.walk import Text
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.prune import num_tokens_of, prune_content
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.writer import PoolContent, write_pool

MAX_DRAFTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--tokenizer", default="mistral-v1")
    parser.add_argument("--shares", default="5,10,20,30,50", help="percent of the tokens, by commas")
    parser.add_argument("--limit", type=int, help="held-out documents to walk")
    parser.add_argument("--hold-out", type=int, help="so many documents of the train part")
    arguments = parser.parse_args()
    for path in (arguments.documents, arguments.split):
        if not path.exists():
            print(f"Skipped: there is no file {path}.")
            return
    corpus = read_corpus([arguments.documents], arguments.tokenizer, prompts=False)
    split = read_split(arguments.split, corpus.texts, None, None)
    train, held_out = list(split.train), split.test[: arguments.limit]
    if arguments.hold_out:
        held_out = np.random.default_rng(1).permutation(train)[: arguments.hold_out].tolist()
        train = [i for i in train if i not in set(held_out)]
    documents = [PoolDocument(corpus.texts[i].output) for i in train]
    _print_table(corpus, documents, [corpus.texts[i] for i in held_out], arguments.shares.split(","))


def _print_table(
    corpus: Corpus, documents: Sequence[PoolDocument], held_out: Sequence[Text], shares: Sequence[str]
) -> None:
    everything = _content(corpus, documents)
    full, blend = _tokens_per_step(everything, held_out)
    total = num_tokens_of([documents])
    print(f"{len(held_out)} held-out documents; the full pool: {len(documents)} documents, {total} tokens")
    print(f"{'':26}{'tokens':>10}{'documents':>11}{'tokens/step':>13}{'of full':>9}{'seconds':>9}")
    _print_row("full", documents, full, full)
    for share in shares:
        budget = int(total * float(share) / 100)
        for name, chosen in _by_document(documents, budget):
            _print_row(
                f"{share} %, {name}", chosen, _tokens_per_step(_content(corpus, chosen), held_out)[0], full
            )
        began = time.perf_counter()
        pruned = prune_content(replace(everything, blend=blend), budget)
        seconds = time.perf_counter() - began
        assert pruned.global_documents is not None
        for name, content in (("pruned", pruned), ("…, blend fitted anew", replace(pruned, blend=None))):
            result, _ = _tokens_per_step(content, held_out)
            _print_row(f"{share} %, {name}", pruned.global_documents, result, full, seconds)


def _print_row(
    name: str, documents: Sequence[PoolDocument], result: float, full: float, seconds: float | None = None
) -> None:
    figures = f"{num_tokens_of([documents]):10d}{len(documents):11d}{result:13.3f}{result / full:9.1%}"
    print(f"{name:26}{figures}{'' if seconds is None else f'{seconds:9.1f}'}", flush=True)


def _by_document(
    documents: Sequence[PoolDocument], budget: int
) -> Iterator[tuple[str, Sequence[PoolDocument]]]:
    shuffled = np.random.default_rng(0).permutation(len(documents)).tolist()
    for name, order in (("random", shuffled), ("newest", range(len(documents))[::-1])):
        ends = np.cumsum([len(documents[i].tokens) for i in order])
        yield name, [documents[i] for i in order[: int(np.searchsorted(ends, budget, side="right"))]]


def _content(corpus: Corpus, documents: Sequence[PoolDocument]) -> PoolContent:
    return PoolContent(corpus.tokenizer, {}, documents, None, "external", None, pivots="")


def _tokens_per_step(content: PoolContent, held_out: Sequence[Text]) -> tuple[float, str | None]:
    """Tokens per step, and the pool's blend."""
    with TemporaryDirectory() as folder:
        manifest = write_pool(content, Path(folder) / "pool")
        with RetrievalPool.open(Path(folder) / "pool") as pool:
            drafter = Drafter(pool, MAX_DRAFTS, content.tokenizer.vocab_size)
            drafter.compile()
            return replay_arm(held_out, DareArm(drafter)).tokens_per_step, manifest.blend


if __name__ == "__main__":
    main()
