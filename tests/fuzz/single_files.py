"""Hostile files of a pool, one at a time: each is opened and used by what reads it.

    python -m tests.fuzz.single_files --cases 1000000 --seed 1
    python -m tests.fuzz.single_files --seed 1 --only 4711    # one case again, in this process

As `tests/fuzz/pool_files.py`, whose options these are; but for the few that are large, the memory that cases
take is looked at now and then.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.fuzz.campaign import PeakMemory, Result
from tests.fuzz.pool_files import draft, excess_of, outcome_of, queries, run_campaign

if TYPE_CHECKING:
    from tests.fuzz.pool_cases import Directory, Files

_LARGE = 100_000
_LOOKED_AT = 16  # of so many small cases, one's memory


def make_file(pools: "list[Files]", seed: int, number: int) -> "Files":
    """A pool of one file, which has been changed."""
    from tests.fuzz.pool_cases import change_one_file

    rng = np.random.default_rng((seed, number))
    pool = pools[int(rng.integers(len(pools)))]
    names = [name for name in pool if name.endswith((".json", ".safetensors"))]
    name = names[int(rng.integers(len(names)))]
    return change_one_file(rng, {name: pool[name]})


def run_one(pools: "list[Files]", seed: int, directory: "Directory", number: int) -> Result:
    """Run a case; what it raises is a fault."""
    files = make_file(pools, seed, number)
    directory.put(files)
    size = sum(len(content) for content in files.values() if isinstance(content, bytes))
    memory = PeakMemory() if size > _LARGE or number % _LOOKED_AT == 0 else None
    outcome = outcome_of(partial(_use, directory, files, np.random.default_rng((seed, number, 1))))
    if memory is None:
        return Result(outcome)
    taken = memory.bytes()
    return Result(outcome, excess_of(taken, files), taken / size if size > _LARGE else 0)


def _use(directory: "Directory", files: "Files", rng: np.random.Generator) -> str:
    for name in files:
        path = directory.path / name
        if name.endswith("manifest.json"):
            return _use_manifest(path.parent)
        if path.name.startswith("assignments-"):
            return _use_assignments(path, rng)
        if path.name.startswith("router-"):
            return _use_router(path, rng)
        return _use_segment(path, rng)
    return "nothing"


def _use_manifest(directory: Path) -> str:
    from vllm_dare.drafting.blend import Blend
    from vllm_dare.pool.manifest import read_manifest
    from vllm_dare.pool.summary import summarize

    manifest = read_manifest(directory)
    summarize(manifest)
    float(sum(info.num_tokens for info in manifest.segments.values())), manifest.created_at.timestamp()
    if manifest.blend is not None:
        assert Blend.decode(manifest.blend).numbers().size
    return "manifest"


def _use_assignments(path: Path, rng: np.random.Generator) -> str:
    from vllm_dare.pool.assignments import Assignments

    table = Assignments.open(path)
    for number in range(4):
        table.group_of("user", f"u{number}")
    if rng.random() < 0.2:
        table.verify_checksum()
        list(table.items())
    if rng.random() < 0.2:
        table.verify()
    return "assignments"


def _use_router(path: Path, rng: np.random.Generator) -> str:
    from vllm_dare.routing.router import Router
    from vllm_dare.routing.router_file import RouterFile

    file = RouterFile.open(path)
    router = Router(None, [file])
    for query in queries():
        router.route(query)
    if rng.random() < 0.2:
        file.verify()
    return "router"


def _use_segment(path: Path, rng: np.random.Generator) -> str:
    from tests.fuzz.pool_cases import MODEL_VOCAB
    from vllm_dare.drafting.drafter import Drafter, Sources
    from vllm_dare.pool.segment import Segment

    segment = Segment.open(path)
    if rng.random() < 0.2:
        segment.verify_checksum()
        for document, _ in segment.keyed_documents():
            document.tobytes()
    draft(Drafter(None, 8, MODEL_VOCAB), Sources.of((segment,), (segment,)), rng)
    if rng.random() < 0.1:
        segment.verify()
    return "segment"


def main() -> None:
    run_campaign("tests.fuzz.single_files", __doc__, run_one, make_file)


if __name__ == "__main__":
    main()
