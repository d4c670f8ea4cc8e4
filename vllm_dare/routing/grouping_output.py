"""The directory that `vllm-dare group` writes: whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from vllm_dare.errors import DareError
from vllm_dare.pool.files import check_writable, sync, temporary_file
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.routing.router_file import ROUTER_PREFIX

ASSIGNMENTS_NAME = "assignments.parquet"
REPORT_NAME = "report.json"
PICTURE_NAME = "groups.png"


def check_grouping_output(output: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Refuse an ``output`` that must not, or cannot, be written.

    Args:
        output: the directory; where it is a symbolic link, what it points to.
        overwrite: whether groups that are there may be replaced.
        inputs: the tables that are read, which may not lie in it.

    Raises:
        DareError: it exists and ``overwrite`` is not set, or it holds something else than a grouping, or
            one of ``inputs``, or no directory can be made there.
    """
    path = _real(output)
    for table in inputs:
        if path in (*_real(table).parents, *table.absolute().parents):
            raise DareError(f"{table} lies in {output}, which would be replaced; choose another --output.")
    if path.exists() and not overwrite:
        raise DareError(f"{output} exists already; choose another --output, or replace it with --overwrite.")
    _check_replaceable(path)
    parent = next(folder for folder in path.parents if folder.exists())
    try:
        check_writable(parent)
    except OSError as error:
        raise DareError(
            f"--output {output} cannot be written: no file can be made in {parent} ({error.strerror}); "
            "choose another place."
        ) from None


def _real(path: Path) -> Path:
    """Where symbolic links lead; unlike `Path.resolve`, no error where they lead in a circle."""
    return Path(os.path.realpath(path))


def _check_replaceable(path: Path) -> None:
    """Refuse to replace anything but an empty directory, or what `vllm-dare group` has written."""
    if not path.exists():
        return
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if not path.is_dir() or (names and ASSIGNMENTS_NAME not in names):
        raise DareError(f"{path} exists and is not a directory of groups; choose another --output.")
    foreign = [name for name in names if not _is_ours(path / name)]
    if foreign:
        raise DareError(
            f"{path} holds {foreign[0]}, which `vllm-dare group` has not written and --overwrite would "
            "remove; choose another --output."
        )


def _is_ours(file: Path) -> bool:
    is_router = file.name.startswith(ROUTER_PREFIX) and file.suffix == SUFFIX
    return file.is_file() and (is_router or file.name in (ASSIGNMENTS_NAME, REPORT_NAME, PICTURE_NAME))


@contextmanager
def staged_directory(output: Path) -> Iterator[Path]:
    """A directory to write into, which becomes ``output`` once the block ends; removed if the block raises.

    Raises:
        DareError: in place of an OSError, or what is there by then must not be replaced, see
            `check_grouping_output`.
    """
    path = _real(output)
    staging, old = (path.parent / f".{path.name}.{uuid.uuid4().hex}.{kind}" for kind in ("tmp", "old"))
    try:
        staging.mkdir(parents=True)
        yield staging
        sync(staging)
        _check_replaceable(path)
        if path.exists():
            os.rename(path, old)
        os.rename(staging, path)
        sync(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise DareError(f"Cannot write {output} ({reason}); check permissions and space.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not path.exists() and old.exists():
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)


def write_assignment_table(
    directory: Path, kind: Literal["user", "item"], ids: Sequence[str], places: Any, groups: Sequence[str]
) -> None:
    """Write ``assignments.parquet``, which `read_assignments` reads.

    Args:
        directory: where to; must exist.
        kind: what the column of ids is called.
        ids: of all users or items.
        places: int32[ids], the place of the group of each; -1 for none, which is left out.
        groups: their names.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = np.flatnonzero(places >= 0)
    table = pa.table(
        {
            kind: pa.array(ids, pa.string()).take(pa.array(kept)),
            "group": pa.array(groups, pa.string()).take(pa.array(places[kept])),
        }
    )
    with temporary_file(directory) as file:
        pq.write_table(table, file)
    os.replace(file.name, directory / ASSIGNMENTS_NAME)
