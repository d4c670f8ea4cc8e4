"""The directory that `vllm-dare group` writes: whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from vllm_dare.errors import DareError
from vllm_dare.pool.files import check_writable, sync_directory, temporary_file

ASSIGNMENTS_NAME = "assignments.parquet"
REPORT_NAME = "report.json"


def check_grouping_output(output: Path, overwrite: bool) -> None:
    """Refuse an ``output`` that must not, or cannot, be written.

    Raises:
        DareError: it exists and ``overwrite`` is not set, or it is something else than a grouping, or no
            directory can be made there.
    """
    if output.exists() and not overwrite:
        raise DareError(f"{output} exists already; choose another --output, or replace it with --overwrite.")
    is_empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not is_empty and not (output / ASSIGNMENTS_NAME).is_file():
        raise DareError(f"{output} exists and is not a directory of groups; choose another --output.")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    try:
        check_writable(parent)
    except OSError as error:
        raise DareError(
            f"--output {output} cannot be written: no file can be made in {parent} ({error.strerror}); "
            "choose another place."
        ) from None


@contextmanager
def staged_directory(output: Path) -> Iterator[Path]:
    """A directory to write into, which becomes ``output`` once the block ends; removed if the block raises.

    Raises:
        DareError: in place of an OSError.
    """
    path = output.absolute()
    staging, old = (path.parent / f".{path.name}.{uuid.uuid4().hex}.{kind}" for kind in ("tmp", "old"))
    try:
        staging.mkdir(parents=True)
        yield staging
        sync_directory(staging)
        if path.exists():
            os.rename(path, old)
        os.rename(staging, path)
        sync_directory(path.parent)
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
