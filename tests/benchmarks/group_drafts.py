"""Whether groups draft better than chance, at equal size, and what placing users anew costs.

    .venv/bin/python -m tests.benchmarks.group_drafts --documents user_knowledge.jsonl.gz \\
        --split splits.json --groups groups/ other.csv --documents-per-group 100,600
    .venv/bin/python -m tests.benchmarks.group_drafts ... --groups groups/ --interactions interactions.csv.gz

Each --groups is a table of assignments, or a directory that `vllm-dare group users` wrote. Of every group so
many documents of the split's train part draft (own text and the group's, nothing else), of random groups as
many of anybody's; --seeds picks of both. Held-out users whose group has fewer documents are left out of both
arms. The gain is that in tokens per step over all users, with a 95 % bootstrap interval over users.

With --interactions, held-out users are also placed by the router of the directory, from five of the items
they liked, and drafted for with that group's text; beside them, placed by all they liked. Make the groups of
interactions without these users.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vllm_dare.drafting.drafter import Drafter
from vllm_dare.evaluation.bootstrap import estimate
from vllm_dare.evaluation.corpus import Corpus, read_corpus
from vllm_dare.evaluation.replay import DareArm
from vllm_dare.evaluation.split import read_split
from vllm_dare.evaluation.tally import Tally
from vllm_dare.evaluation.walk import walk
from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.group_inputs import assignment_table, group_router
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.writer import PoolContent, write_pool
from vllm_dare.routing.interactions import Columns, read_positives
from vllm_dare.routing.query import Query
from vllm_dare.routing.router import Router

MAX_DRAFTS = 16
FEW = 5
Members = Mapping[str, Sequence[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--tokenizer", default="mistral-v1")
    parser.add_argument("--groups", type=Path, nargs="+", required=True)
    parser.add_argument("--documents-per-group", default="100,600")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--interactions", type=Path)
    arguments = parser.parse_args()
    corpus = read_corpus([arguments.documents], arguments.tokenizer, prompts=False)
    split = read_split(arguments.split, corpus.texts, None, None)
    for path in arguments.groups:
        group_of = {user: group for _, user, group in read_assignments(assignment_table(path))}
        for size in map(int, arguments.documents_per_group.split(",")):
            _compare_with_random(corpus, split.train, split.test, path, group_of, size, arguments.seeds)
        if arguments.interactions is not None and path.is_dir():
            _compare_placing(corpus, split.train, split.test, path, group_of, arguments.interactions)


def _compare_with_random(
    corpus: Corpus,
    train: Sequence[str],
    test: Sequence[str],
    path: Path,
    group_of: Mapping[str, str],
    size: int,
    seeds: int,
) -> None:
    members = _members(train, group_of)
    large = {group for group, ids in members.items() if len(ids) >= size}
    users = [user for user in test if group_of.get(user) in large]
    if not users:
        print(f"{path.name}: no held-out user is in a group of {size} documents")
        return
    tokens, steps, random_steps = (np.zeros(len(users)) for _ in range(3))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        groups = {group: rng.choice(members[group], size, replace=False).tolist() for group in sorted(large)}
        chance = {group: rng.choice(train, size, replace=False).tolist() for group in sorted(large)}
        where = [group_of[user] for user in users]
        written, taken = _steps(corpus, groups, users, where)
        _, random_taken = _steps(corpus, chance, users, where)
        tokens, steps, random_steps = tokens + written, steps + taken, random_steps + random_taken
    gain = estimate(lambda ours, others: others / ours - 1, steps, random_steps)
    assert gain is not None
    print(
        f"{path.name}, {size} documents in each of {len(large)} groups, {len(users)} users: "
        f"{tokens.sum() / steps.sum():.3f} tokens per step, random groups "
        f"{tokens.sum() / random_steps.sum():.3f}: {gain.value:+.1%} ({gain.low:+.1%} to {gain.high:+.1%})",
        flush=True,
    )


def _compare_placing(
    corpus: Corpus,
    train: Sequence[str],
    test: Sequence[str],
    path: Path,
    group_of: Mapping[str, str],
    interactions: Path,
) -> None:
    """Held-out users by where all their items lead, and by where five of them do."""
    router = Router(None, [group_router(path)])
    liked = _liked(interactions)
    users = [user for user in test if len(liked.get(user, ())) > FEW]
    placed = [str(router.route(Query(history=liked[user][:FEW])).group) for user in users]
    where = [str(router.route(Query(history=liked[user])).group) for user in users]
    members = _members(train, group_of)
    same = np.mean([one == other for one, other in zip(placed, where, strict=True)])
    shares = np.array([len(ids) for ids in members.values()]) / sum(map(len, members.values()))
    print(
        f"{path.name}, {len(users)} users placed by {FEW} items: {same:.1%} where all their items lead "
        f"(chance {(shares**2).sum():.1%})"
    )
    for name, overall in (("their group's text", ()), ("their group's and everybody's text", train)):
        tokens, steps = _steps(corpus, members, users, where, overall)
        _, placed_steps = _steps(corpus, members, users, placed, overall)
        loss = estimate(lambda ours, full: full / ours - 1, placed_steps, steps)
        assert loss is not None
        print(
            f"  {name}: {tokens.sum() / placed_steps.sum():.3f} tokens per step, placed by all their items "
            f"{tokens.sum() / steps.sum():.3f}: {loss.value:+.1%} ({loss.low:+.1%} to {loss.high:+.1%})",
            flush=True,
        )


def _members(train: Sequence[str], group_of: Mapping[str, str]) -> Members:
    members: dict[str, list[str]] = defaultdict(list)
    for user in train:
        if user in group_of:
            members[group_of[user]].append(user)
    return members


def _liked(interactions: Path) -> dict[str, list[str]]:
    """Five or more items of each user, in an order that has nothing to do with the table's."""
    positives = read_positives(interactions, Columns())
    order = np.random.default_rng(0).permutation(len(positives.users))
    liked: dict[str, list[str]] = defaultdict(list)
    for user, item in zip(positives.users[order].tolist(), positives.items[order].tolist(), strict=True):
        liked[positives.user_ids[user]].append(positives.item_ids[item])
    return liked


def _steps(
    corpus: Corpus, members: Members, users: Sequence[str], where: Sequence[str], overall: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """float64[users] each: tokens written, and steps taken, with the text of each user's group, and that of
    `overall`.
    """
    with TemporaryDirectory() as folder:
        content = PoolContent(
            tokenizer=corpus.tokenizer,
            groups={
                group: [PoolDocument(corpus.texts[i].output) for i in ids]
                for group, ids in sorted(members.items())
            },
            global_documents=[PoolDocument(corpus.texts[i].output) for i in overall] or None,
            assignments=None,
            provenance="external",
            model=None,
        )
        write_pool(content, Path(folder) / "pool")
        with RetrievalPool.open(Path(folder) / "pool") as pool:
            drafter = Drafter(pool, MAX_DRAFTS, corpus.tokenizer.vocab_size)
            drafter.compile()
            arm = DareArm(drafter)
            tokens, steps = np.zeros(len(users)), np.zeros(len(users))
            for place, (user, group) in enumerate(zip(users, where, strict=True)):
                text = replace(corpus.texts[user], group=group)
                tally = Tally(MAX_DRAFTS)
                session = arm.start(text)
                for step in walk(session, text, MAX_DRAFTS):
                    tally.add(step)
                session.close()
                tokens[place], steps[place] = tally.tokens, tally.steps
            return tokens, steps


if __name__ == "__main__":
    main()
