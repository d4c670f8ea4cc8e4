"""What `vllm-dare group users` costs at scale: minutes and memory, on made-up interactions.

By default a million users, 100,000 items and 20 million interactions:

    .venv/bin/python -m tests.benchmarks.grouping
    .venv/bin/python -m tests.benchmarks.grouping --users 10000 --items 2000 --interactions 200000

Each user belongs to one of 50 tastes, each item to one or another; two in three interactions are with an item
of the user's taste. The n-th item is chosen with a probability of about n^(-2/3). The share of users that are
in a group of mostly their own taste says whether groups were found at all.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TASTES = 50
OWN_TASTE = 2 / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--interactions", type=int, default=20_000_000)
    parser.add_argument("--method", default="als")
    parser.add_argument("--groups", default=str(TASTES))
    parser.add_argument("--directory", type=Path, help="where files go; a temporary one by default")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.directory) as folder:
        table = Path(folder) / "interactions.parquet"
        tastes = write_interactions(table, arguments.users, arguments.items, arguments.interactions)
        print(f"{table.stat().st_size / 1e6:.0f} MB of interactions", flush=True)
        output = Path(folder) / "groups"
        command = [sys.executable, "-m", "vllm_dare.cli.app", "group", "users", str(table)]
        command += ["--output", str(output), "--method", arguments.method, "--groups", arguments.groups]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        minutes = (time.perf_counter() - began) / 60
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{minutes:.1f} minutes ({(usage.ru_utime + usage.ru_stime) / 60:.1f} of processor time), peak "
            f"{usage.ru_maxrss / 1e6:.2f} GB; {purity(output / 'assignments.parquet', tastes):.1%} of users "
            "are in a group whose commonest taste is theirs"
        )
        print(json.dumps(json.loads((output / "report.json").read_text())["quality"]))


def write_interactions(path: Path, num_users: int, num_items: int, count: int) -> np.ndarray:
    """Write interactions, a pure function of the numbers; int64[num_users], the taste of each user."""
    rng = np.random.default_rng(0)
    user_tastes = rng.integers(TASTES, size=num_users)
    users = rng.integers(num_users, size=count)
    # The n-th most popular item has taste n modulo TASTES, so that tastes are as popular as one another.
    ranks = (num_items * rng.random(count) ** 3).astype(np.int64)
    own = rng.random(count) < OWN_TASTE
    tasteful = ranks - ranks % TASTES + user_tastes[users]
    items = np.where(own, np.minimum(tasteful, num_items - 1), ranks)
    names = rng.permutation(num_items)  # ids say nothing
    pq.write_table(pa.table({"user": users, "item": names[items]}), path)
    return user_tastes


def purity(assignments: Path, tastes: np.ndarray) -> float:
    """The share of users that are in a group most of whose members have their taste."""
    table = pq.read_table(assignments)
    users = table["user"].cast(pa.int64()).to_numpy()
    encoded = table["group"].combine_chunks().dictionary_encode()
    groups = encoded.indices.to_numpy()
    counts = np.bincount(groups * TASTES + tastes[users], minlength=len(encoded.dictionary) * TASTES)
    return float(counts.reshape(-1, TASTES).max(axis=1).sum() / len(users))


if __name__ == "__main__":
    main()
