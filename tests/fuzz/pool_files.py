"""Hostile pools: each is opened and used as an engine does; refused with a typed error, or harmless.

    python -m tests.fuzz.pool_files --cases 1000000 --seed 1
    python -m tests.fuzz.pool_files --seed 1 --only 4711      # one case again, in this process

By default numba checks every index of the look-up kernels (compiling takes half a minute); --fast leaves
that out, as engines do. A fault is a crash, a hang, an exception that is no DareError, a token id that the
model does not have, or more memory than twice the pool's files, ten times its JSON and 8 MB. Its files are
put under --failures, and the exit status is 1.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.fuzz.campaign import PeakMemory, Result, run_cases

if TYPE_CHECKING:
    from tests.fuzz.pool_cases import Directory, Files
    from vllm_dare.drafting.drafter import Drafter, Sources
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.routing.query import Query

_SMALL = 8_000_000
_DRAFTS = 8


Make = Callable[["list[Files]", int, int], "Files"]
RunOne = Callable[["list[Files]", int, "Directory", int], Result]


def run_campaign(module: str, description: str | None, run_one: RunOne, make: Make) -> None:
    """The command: run cases as it is asked to, and exit.

    Args:
        module: the command's name; description: what it says of itself.
        run_one: runs the case of a seed and number; make: makes its files.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--fast", action="store_true", help="without checks in the kernels")
    parser.add_argument("--failures", type=Path, default=Path("out/fuzz"))
    arguments = parser.parse_args()
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        if not arguments.fast:  # numba reads this when it is imported, and keeps such kernels apart
            os.environ["NUMBA_BOUNDSCHECK"] = "1"
            os.environ.setdefault("NUMBA_CACHE_DIR", f"{folder}/kernels")
        warnings.simplefilter("ignore")  # of numbers that are none, in files whose numbers were made up
        sys.exit(_run(arguments, Path(folder), module, run_one, make))


def _run(arguments: argparse.Namespace, folder: Path, module: str, run_one: RunOne, make: Make) -> int:
    from tests.fuzz.pool_cases import Directory

    pools, seed = honest(folder), arguments.seed
    directory = Directory(folder / "case")
    if arguments.only is not None:
        print(run_one(pools, seed, directory, arguments.only))
        print(*map(_described, make(pools, seed, arguments.only).items()), sep="\n")
        return 0
    numbers = range(arguments.first, arguments.first + arguments.cases)
    report = run_cases(partial(run_one, pools, seed, directory), numbers, most_seconds=arguments.seconds)
    print(*report.lines(), sep="\n")
    print(f"  the most memory that a case took: {report.factor:.2f} times its files (of 100 kB and more)")
    for number, why in report.faults.items():
        output = arguments.failures / f"{seed}-{number}"
        _keep(output, folder, make(pools, seed, number))
        print(f"\n{why}\n  {output}: python -m {module} --seed {seed} --only {number}")
    return 1 if report.faults else 0


def _described(file: tuple[str, object]) -> str:
    return f"{file[0]}: {str(file[1])[:400]}"


def _keep(output: Path, folder: Path, files: "Files") -> None:
    from tests.fuzz.pool_cases import Directory

    Directory(folder / "kept").put(files)
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "kept", output, symlinks=True, ignore=_pipes)


def _pipes(folder: str, names: list[str]) -> Iterable[str]:
    """Pipes cannot be copied."""
    return [name for name in names if (Path(folder) / name).is_fifo()]


def honest(folder: Path) -> "list[Files]":
    """The pools that cases begin with; each is accepted, verified, and drafts."""
    from tests.fuzz.pool_cases import Directory, honest_pools

    pools = honest_pools(folder / "honest")
    directory = Directory(folder / "honest-case")
    for files in pools:
        directory.put(files)
        use_pool(directory, np.random.default_rng(0), always=True)
        directory.forget()
    return pools


def run_one(pools: "list[Files]", seed: int, directory: "Directory", number: int) -> Result:
    """Run a case; what it raises is a fault."""
    from tests.fuzz.pool_cases import NOWHERE, make_case

    files = make_case(pools, seed, number)
    directory.put(files)
    memory = PeakMemory()
    outcome = outcome_of(partial(use_pool, directory, np.random.default_rng((seed, number, 1))))
    taken = memory.bytes()
    assert not NOWHERE.exists(), "a link's target was made"
    size = sum(len(content) for content in files.values() if isinstance(content, bytes))
    return Result(outcome, excess_of(taken, files), taken / size if size > 10**5 else 0)


def outcome_of(use: Callable[[], str]) -> str:
    """How using files goes."""
    from vllm_dare.errors import DareError

    try:
        return f"accepted, {use()}"
    except DareError as error:
        _check_message(str(error))
        return f"refused: {type(error).__name__}: {_reason(str(error))}"


def excess_of(taken: int, files: "Files") -> int:
    """How many bytes of memory have been taken beyond what these files may take."""
    size = sum(len(content) for content in files.values() if isinstance(content, bytes))
    return taken - 2 * size - 10 * sum(map(_json_bytes, files.items())) - _SMALL


def _json_bytes(file: "tuple[str, object]") -> int:
    name, content = file
    return len(content) if name.endswith(".json") and isinstance(content, bytes) else 0


def _reason(message: str) -> str:
    """What a message says but for names and numbers."""
    found = re.search(r"\((.*)\)[;.]? ?", message) or re.search(r" (is .*)", message)
    reason = found[1].rpartition(": ")[2] if found else message
    return re.sub(r"\d+", "N", reason)[:70]


def _check_message(message: str) -> None:
    assert "\n" not in message, f"a message of several lines: {message[:500]}"
    assert len(message) < 1500, f"a message of {len(message)} characters: {message[:500]}"


def use_pool(directory: "Directory", rng: np.random.Generator, always: bool = False) -> str:
    """What an engine does with a pool, with what is learned, and, now and then, what `vllm-dare pool` does.

    Args:
        always: whether to do everything.
    """
    from tests.fuzz.pool_cases import MODEL_VOCAB
    from vllm_dare.drafting.drafter import Drafter
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.pool.summary import summarize

    def now_and_then(share: float) -> bool:
        return always or bool(rng.random() < share)

    verifies = now_and_then(0.5)
    with RetrievalPool.open(directory.path) as pool:
        pool.check_files()
        if verifies:
            _verify_checksums(pool)
        pool.prepare()
        float(pool.num_tokens), float(pool.num_bytes), pool.manifest.created_at.timestamp()
        summarize(pool.manifest, pool.routers)
        _route(pool)
        drafter = Drafter(pool, _DRAFTS, MODEL_VOCAB)
        if now_and_then(0.1):
            drafter = _with_memories(directory, pool, rng)
        for group in [None, "users/0", *list(pool.groups)[:2]]:
            draft(drafter, drafter.sources(group), rng)
        if (directory.path / "live" / "manifest.json").exists() and now_and_then(0.25):
            _learn(directory, pool, rng, now_and_then)
        if now_and_then(0.003):
            _merge(pool, directory)
        if now_and_then(0.02):
            pool.verify()
            return "verified in full"
    return "checksums compared" if verifies else "no checksums compared"


def _verify_checksums(pool: "RetrievalPool") -> None:
    """`RetrievalPool.verify_checksums`, without the threads, which take longer to start than all else."""
    for file in (pool.assignments, *pool.routers, *pool.global_segments()):
        if file is not None:
            file.verify_checksum()
    for group in pool.groups:
        for segment in pool.group_segments(group):
            segment.verify_checksum()


def _route(pool: "RetrievalPool") -> None:
    for query in queries():
        pool.router.route(query)


def queries() -> "tuple[Query, ...]":
    from vllm_dare.routing.query import Query

    return (
        Query(user="u1"),
        Query(item="i2", attributes=(("genre", "War"), ("age", "25"))),
        Query(user="new", history=("i1", "i3", "other"), attributes=(("age", "25"), ("genre", "Drama"))),
    )


def draft(drafter: "Drafter", sources: "Sources", rng: np.random.Generator) -> None:
    """A few steps of a request: its text goes on as drafted, or otherwise."""
    from tests.fuzz.pool_cases import MODEL_VOCAB

    text = np.zeros((1, 80), np.int32)
    size = int(rng.integers(1, 50))
    text[0, :size] = rng.integers(0, MODEL_VOCAB, size)
    known = next((segment.tokens for segment in sources.segments if rng.random() < 0.8), None)
    if known is not None:
        start = int(rng.integers(len(known)))
        piece = known[start : start + size]
        piece = piece[(piece >= 0) & (piece < MODEL_VOCAB)]
        text[0, size - len(piece) : size] = piece
    batch = drafter.batch([0], [sources], [int(rng.integers(2))], [int(rng.choice([-1, 3]))])
    for _ in range(3):
        drafts = drafter.draft(text, batch, np.array([size]), np.array([_DRAFTS]))
        chain = drafts.tokens[0, : drafts.lengths[0]]
        assert ((chain >= 0) & (chain < MODEL_VOCAB)).all(), f"drafts {chain}"
        kept = chain[: int(rng.integers(_DRAFTS + 1))]
        text[0, size : size + len(kept)] = kept
        text[0, size + len(kept)] = rng.integers(0, MODEL_VOCAB)
        size += len(kept) + 1


def _with_memories(directory: "Directory", pool: "RetrievalPool", rng: np.random.Generator) -> "Drafter":
    """A drafter that remembers an honest version, whose files may have the same names."""
    from tests.fuzz.pool_cases import MODEL_VOCAB
    from vllm_dare.drafting.drafter import Drafter
    from vllm_dare.pool.pool import RetrievalPool

    with RetrievalPool.open(directory.path.parent / "honest" / "single") as before:
        drafter = Drafter(before, _DRAFTS, MODEL_VOCAB)
        for _ in range(3):
            draft(drafter, drafter.sources(None), rng)
    drafter.serve(pool)
    return drafter


def _learn(
    directory: "Directory",
    pool: "RetrievalPool",
    rng: np.random.Generator,
    now_and_then: Callable[[float], bool],
) -> None:
    from tests.fuzz.pool_cases import INFO, MODEL_VOCAB
    from vllm_dare.drafting.drafter import Drafter
    from vllm_dare.pool.live import LiveDocument, LivePool
    from vllm_dare.pool.live_store import LiveStore, prepare_live

    text = [LiveDocument(rng.integers(0, INFO.vocab_size, 70).astype(np.int32), "users/0", "strict", 1)]
    writes = now_and_then(0.1)
    try:
        live = prepare_live(directory.path, INFO, verify=bool(rng.random() < 0.5))
        store = LiveStore(live, INFO, has_global=bool(pool.manifest.global_segments), max_tokens=10**4)
        learned = LivePool(store.read(), has_global=True, max_unfrozen_tokens=1000)
        learned.add(text)
        drafter = Drafter(pool, _DRAFTS, MODEL_VOCAB, live=learned)
        for group in (None, "users/0"):
            draft(drafter, drafter.sources(group), rng)
        if writes:
            store.freeze(text)
            learned.swap(store.read())
            draft(drafter, drafter.sources("users/0"), rng)
    finally:
        if writes:
            directory.forget()


def _merge(pool: "RetrievalPool", directory: "Directory") -> None:
    """What `pool merge` and `refresh` read: all documents and assignments."""
    from vllm_dare.pool.merge import pool_content
    from vllm_dare.pool.writer import write_pool

    pool.verify_checksums(workers=1)
    output = directory.path.parent / "merged"
    try:
        write_pool(pool_content([pool]), output, workers=1)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def main() -> None:
    from tests.fuzz.pool_cases import make_case

    run_campaign("tests.fuzz.pool_files", __doc__, run_one, make_case)


if __name__ == "__main__":
    main()
