"""What a table of who belongs to which group costs: to make, to open, to ask.

    .venv/bin/python -m tests.benchmarks.assignments --ids 10000000 --groups 1000

Half of the ids that are looked up are in the table; each look-up is timed on its own, in random order, so
that it finds the processor's caches without it. Ids are made up and go straight to the writer ("write"); with
--parquet they are read from a Parquet file, as `vllm-dare pool build --assignments` reads them.
"""

import argparse
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.assignments import Assignment, Assignments, write_assignments

_BATCH = 2**16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--look-ups", type=int, default=200_000)
    parser.add_argument("--parquet", action="store_true", help="read the ids from a Parquet file")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        assignments = _made_up(arguments.ids, arguments.groups)
        if arguments.parquet:
            assignments = read_assignments(_parquet(Path(folder) / "table.parquet", assignments))
        began = time.perf_counter()
        path = write_assignments(Path(folder), assignments)
        minutes = (time.perf_counter() - began) / 60
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        began = time.perf_counter()
        table = Assignments.open(path)
        milliseconds = (time.perf_counter() - began) * 1000
        nanoseconds = _look_up(table, arguments.ids, arguments.look_ups)
        print(f"ids                  {len(table):,}")
        print(f"write                {minutes:.2f} minutes")
        print(f"peak memory          {peak / 2**30:.2f} GiB")
        print(f"bytes per id         {path.stat().st_size / len(table):.2f}")
        print(f"open                 {milliseconds:.2f} ms")
        print(f"look-up, median      {median(nanoseconds) / 1000:.2f} µs")
        print(f"look-up, p99         {quantiles(nanoseconds, n=100)[-1] / 1000:.2f} µs")


def _made_up(num_ids: int, num_groups: int) -> Iterator[Assignment]:
    return (("user", f"u{number}", f"users/{number % num_groups}") for number in range(num_ids))


def _parquet(path: Path, assignments: Iterator[Assignment]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"user": pa.string(), "group": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[Assignment] = []
        for assignment in assignments:
            batch.append(assignment)
            if len(batch) == _BATCH:
                writer.write_table(_table(batch, schema))
                batch = []
        if batch:
            writer.write_table(_table(batch, schema))
    return path


def _table(batch: list[Assignment], schema: object) -> object:
    import pyarrow as pa

    columns = {"user": [entity for _, entity, _ in batch], "group": [group for _, _, group in batch]}
    return pa.table(columns, schema=schema)


def _look_up(table: Assignments, num_ids: int, count: int) -> list[int]:
    """Nanoseconds of each look-up."""
    pick = random.Random(0)
    ids = [f"u{pick.randrange(2 * num_ids)}" for _ in range(count)]
    taken = []
    for entity in ids:
        began = time.perf_counter_ns()
        table.group_of("user", entity)
        taken.append(time.perf_counter_ns() - began)
    return taken


if __name__ == "__main__":
    main()
