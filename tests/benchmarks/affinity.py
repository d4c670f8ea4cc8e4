"""What it is worth to send all requests of a group to the same engine, if engines learn apart:

    python -m tests.benchmarks.affinity --documents knowledge.jsonl.gz --groups groups/ --engines 1,2,4,8,16

A simulation without a model: the documents come in any order, each goes to one of N engines, is written there
as speculative decoding would write it, and is learned by that engine alone. Routing is at random, or by
consistent hashing of the group, with bounded loads: an engine that has a quarter more than its share passes
on to the next. Prints, for the second half of the documents, tokens per step, the share of steps whose first
draft was right (hit rate), and how many groups' text an engine has to hold.
"""

import argparse
import bisect
import hashlib
import math
import random
from collections import defaultdict
from pathlib import Path

import numpy as np

from vllm_dare.drafting.drafter import Drafter, Sources
from vllm_dare.evaluation.corpus import read_corpus
from vllm_dare.evaluation.replay import DareSession
from vllm_dare.evaluation.walk import Text, walk
from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.group_inputs import assignment_table
from vllm_dare.pool.live import LiveText

MAX_DRAFTS = 16
POINTS_PER_ENGINE = 100  # on the circle of hashes
LOAD_FACTOR = 1.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--tokenizer", default="mistral-v1")
    parser.add_argument("--groups", type=Path, required=True)
    parser.add_argument("--engines", default="1,2,4,8,16")
    parser.add_argument("--limit", type=int, help="so many documents, in an order that hangs on --seed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    corpus = read_corpus([arguments.documents], arguments.tokenizer, prompts=False)
    group_of = {entity: group for _, entity, group in read_assignments(assignment_table(arguments.groups))}
    ids = sorted(entity for entity in corpus.texts if entity in group_of)
    random.Random(arguments.seed).shuffle(ids)
    texts = [(group_of[entity], corpus.texts[entity]) for entity in ids[: arguments.limit]]
    vocabulary = max(int(text.output.max()) for _, text in texts) + 1
    print(f"{len(texts):,} documents of {len({group for group, _ in texts})} groups")
    for number in map(int, arguments.engines.split(",")):
        for routing in ("random",) if number == 1 else ("random", "by group"):
            print(f"{number:3} engines, {routing:8}: {_simulate(texts, number, routing, vocabulary)}")


class Engine:
    """One engine's learned text, by group and in all."""

    def __init__(self, vocabulary: int) -> None:
        self.drafter = Drafter(None, MAX_DRAFTS, vocabulary)
        self.groups: dict[str, LiveText] = defaultdict(LiveText)
        self.overall = LiveText()

    def write(self, group: str, text: Text) -> tuple[int, int, int]:
        """How many steps it took, how many of them had a right first draft, and how many had a draft."""
        sources = Sources.of(live_group=self.groups[group].runs, live_overall=self.overall.runs)
        session = DareSession(self.drafter, sources, text)
        steps = list(walk(session, text, MAX_DRAFTS))
        self.groups[group].add([text.output])
        self.overall.add([text.output])
        asked = [step for step in steps if step.chain is not None]
        return len(steps), sum(step.accepted > 0 for step in asked), len(asked)


def _simulate(texts: list[tuple[str, Text]], number: int, routing: str, vocabulary: int) -> str:
    engines = [Engine(vocabulary) for _ in range(number)]
    router, rng = Ring(number), random.Random(0)
    tokens = steps = hits = asked = 0
    for place, (group, text) in enumerate(texts):
        engine = engines[router.route(group) if routing == "by group" else rng.randrange(number)]
        result = engine.write(group, text)
        if place >= len(texts) // 2:
            tokens += len(text.output)
            steps, hits, asked = steps + result[0], hits + result[1], asked + result[2]
    groups = np.mean([len(engine.groups) for engine in engines])
    busiest = (
        f", busiest engine {max(router.loads) / np.mean(router.loads):.2f} x" if any(router.loads) else ""
    )
    return f"{tokens / steps:.3f} tokens a step, hit rate {hits / asked:.1%}, {groups:.1f} groups{busiest}"


class Ring:
    """Consistent hashing with bounded loads (Mirrokni et al., arXiv 1608.01350)."""

    def __init__(self, number: int) -> None:
        self._points = sorted(
            (_hash(f"engine-{engine}-{point}"), engine)
            for engine in range(number)
            for point in range(POINTS_PER_ENGINE)
        )
        self.loads = [0] * number

    def route(self, key: str) -> int:
        """The first engine after the key's place that has room."""
        bound = math.ceil(LOAD_FACTOR * (sum(self.loads) + 1) / len(self.loads))
        place = bisect.bisect(self._points, (_hash(key), -1))
        for step in range(len(self._points)):
            engine = self._points[(place + step) % len(self._points)][1]
            if self.loads[engine] < bound:
                self.loads[engine] += 1
                return engine
        raise AssertionError("some engine is below the mean")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


if __name__ == "__main__":
    main()
