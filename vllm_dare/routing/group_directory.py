"""What `vllm-dare group` writes: a directory of a table of assignments, a router and a report."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError, PoolError
from vllm_dare.pool.assignments import EntityKind
from vllm_dare.pool.files import replace_text, sync_directory
from vllm_dare.pool.tensor_file import SUFFIX
from vllm_dare.routing.router_file import ROUTER_PREFIX, RouterFile

TABLE_NAME = "assignments.parquet"
REPORT_NAME = "report.json"


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse an ``output`` that must not be written to.

    Raises:
        DareError: it exists and ``overwrite`` is not set, or it is something else than such a directory.
    """
    if not output.exists():
        return
    if not overwrite:
        raise DareError(f"{output} exists already; choose another --output, or replace it with --overwrite.")
    if not (output / TABLE_NAME).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise DareError(f"{output} exists and is not a directory of groups; choose another --output.")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A directory to write into, which is ``output`` once the block ends, and gone if it raises.

    Raises:
        DareError: it cannot be written.
    """
    name = f".{output.absolute().name}.{uuid.uuid4().hex}"
    staging, old = (output.absolute().parent / f"{name}.{kind}" for kind in ("tmp", "old"))
    try:
        staging.mkdir(parents=True)
        yield staging
        if output.exists():
            os.rename(output, old)
        os.rename(staging, output)
        sync_directory(staging.parent)
    except OSError as error:
        reason = error.strerror or error
        raise DareError(f"Cannot write {output} ({reason}); check permissions and space.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_table(directory: Path, kind: EntityKind, ids: Sequence[str], groups: Sequence[str]) -> None:
    """Write ``assignments.parquet``: the columns user or item, and group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {kind: pa.array(ids, pa.string()), "group": pa.array(groups, pa.string()).dictionary_encode()}
    pq.write_table(pa.table(columns), directory / TABLE_NAME)


def write_report(directory: Path, report: Mapping[str, Any]) -> None:
    """Write ``report.json``."""
    replace_text(directory / REPORT_NAME, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def assignment_table(path: Path) -> Path:
    """The table of such a directory; a file is a table itself.

    Raises:
        PoolError: it is a directory without one.
    """
    if not path.is_dir():
        return path
    table = path / TABLE_NAME
    if not table.is_file():
        raise PoolError(
            f"{path} is a directory without {TABLE_NAME}; give a table, or a directory that "
            "`vllm-dare group` wrote."
        )
    return table


def group_router(directory: Path) -> RouterFile:
    """The router of such a directory.

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
