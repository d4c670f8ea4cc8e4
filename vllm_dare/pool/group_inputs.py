"""What `pool build --assignments` names: tables of assignments, or what `vllm-dare group` wrote."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignment_file import read_assignments
from vllm_dare.pool.assignments import Assignment
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.routing.grouping_output import ASSIGNMENTS_NAME
from vllm_dare.routing.router_file import ROUTER_PREFIX, RouterFile


def assignment_table(path: Path) -> Path:
    """The table of a directory that `vllm-dare group` wrote; a file is a table itself.

    Raises:
        PoolError: there is nothing, or a directory without one.
    """
    if not path.exists():
        raise PoolError(f"There is no file or directory {path}; check the path.")
    if not path.is_dir():
        return path
    table = path / ASSIGNMENTS_NAME
    if not table.is_file():
        raise PoolError(
            f"{path} is a directory without {ASSIGNMENTS_NAME}; give a table, or a directory that "
            "`vllm-dare group` wrote."
        )
    return table


def group_router(directory: Path) -> RouterFile:
    """The router of a directory that `vllm-dare group` wrote.

    Raises:
        PoolError: there is none, or more than one, or it is damaged.
    """
    found = sorted(directory.glob(f"{ROUTER_PREFIX}*{SUFFIX}"))
    if len(found) != 1:
        raise PoolError(
            f"{directory} holds {len(found)} files {ROUTER_PREFIX}*{SUFFIX}, but one is needed; make it anew "
            "with `vllm-dare group`."
        )
    return RouterFile.open(found[0])


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
