"""What `pool build --assignments` names: tables of assignments, or what `vllm-dare group` wrote."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.assignments import Assignment
from vllm_dare.routing.group_directory import assignment_table, group_router
from vllm_dare.routing.router_file import RouterFile


def read_groups(paths: Iterable[Path]) -> Iterator[Assignment]:
    """Every assignment, in the order of the paths.

    Raises:
        PoolError: a path cannot be read, or a row does not say who belongs to which group.
    """
    tables = [assignment_table(path) for path in paths]  # now: the rows are read much later
    return chain.from_iterable(map(read_assignments, tables))


def read_routers(paths: Iterable[Path]) -> list[RouterFile]:
    """The routers of those paths that are directories; PoolError as `group_router`."""
    return [group_router(path) for path in paths if path.is_dir()]
