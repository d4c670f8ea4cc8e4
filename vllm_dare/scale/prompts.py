"""Prompt files as a Ray dataset: read where there is room, arranged in partitions in Ray's memory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vllm_dare.errors import DareError, RequestError
from vllm_dare.generation.engine import open_router
from vllm_dare.generation.fingerprint import digest
from vllm_dare.generation.partitions import Rows
from vllm_dare.generation.prompts import PromptRow, RowId, prompt_files, read_prompt_file
from vllm_dare.generation.settings import EngineSettings
from vllm_dare.pool.manifest import is_pool
from vllm_dare.request import ANY_ENGINE, RequestOptions
from vllm_dare.scale.cluster import quiet_data, shuffle_blocks
from vllm_dare.store.cache import pool_directory

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_dare.routing.router import Router

_CHUNK_ROWS = 1024
_ROW_BITS = 40  # of a position: the row within its file, above that the file
_NOWHERE = -1


class RowFacts(NamedTuple):
    """What the driver knows of a row, which itself stays in the cluster: its id and its fingerprint."""

    id: RowId
    digest: bytes


class PromptRows:
    """The rows of a prompt file or directory.

    Attributes:
        groups: int64[rows], a number for the group whose text drafts for each row, in the files' order.
    """

    def __init__(self, dataset: Any, index: "pa.Table") -> None:
        self._dataset, self._index = dataset, index
        self.groups: Rows = _codes(index["group"])

    def __len__(self) -> int:
        return len(self._index)

    def facts(self) -> Iterator[RowFacts]:
        """Those of each row, in the files' order."""
        for batch in self._index.select(["id", "digest"]).to_batches(_CHUNK_ROWS):
            for row_id, row_digest in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield RowFacts(json.loads(row_id), row_digest)

    def partitions(self, partitions: Sequence[Rows]) -> Any:
        """A dataset with a block for each partition: its number and, as a list, its rows (see `decode_row`).

        Args:
            partitions: the numbers of the rows of each.
        """
        import ray

        numbers, places = (np.full(len(self), _NOWHERE) for _ in range(2))
        for number, rows in enumerate(partitions):
            numbers[rows], places[rows] = number, np.arange(len(rows))
        positions = self._index["position"].to_numpy()
        arranged = self._dataset.map_batches(
            _number, batch_format="pyarrow", fn_args=[ray.put((positions, numbers, places))]
        )
        by_partition = arranged.groupby("partition", num_partitions=shuffle_blocks(len(partitions)))
        grouped = by_partition.map_groups(_collect, batch_format="pyarrow")
        # In memory before any engine asks for the processors that this needs.
        return grouped.materialize().repartition(len(partitions)).materialize()


def read_rows(prompts: Path, limit: int | None, engine: EngineSettings) -> PromptRows:
    """Read all rows, a file at a time on each processor.

    Args:
        prompts: a file or a directory, as `vllm_dare.generation.prompts.read_prompts` takes it.
        limit: the most rows to take.
        engine: whose pool says the group of rows that name none.

    Raises:
        DareError: as `read_prompts`.
    """
    import pyarrow as pa

    items = [
        {"number": number, "path": str(path.absolute())} for number, path in enumerate(prompt_files(prompts))
    ]
    data = quiet_data()
    dataset = data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read, batch_size=1, batch_format="pyarrow", fn_args=[str(prompts.absolute()), limit, engine]
    )
    dataset = dataset.materialize()
    columns = ["position", "id", "group", "digest", "fault"]
    tables = list(dataset.select_columns(columns).iter_batches(batch_size=None, batch_format="pyarrow"))
    index = pa.concat_tables(tables) if tables else _schema().empty_table()
    index = index.sort_by("position").slice(0, limit)
    faults = index["fault"].drop_null()
    if len(faults):
        raise DareError(faults[0].as_py().replace(str(prompts.absolute()), str(prompts), 1))
    return PromptRows(dataset, index)


def decode_row(text: str) -> PromptRow:
    """A row of `PromptRows.partitions`."""
    return PromptRow(*json.loads(text))


def _encode_row(row: PromptRow) -> str:
    return json.dumps([row.id, row.prompt, dict(row.metadata), row.max_tokens], default=str)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "group", "row", "fault")]
    return pa.schema([("position", pa.int64()), ("digest", pa.binary()), *texts])


def _read(files: "pa.Table", root: str, limit: int | None, engine: EngineSettings) -> "Iterator[pa.Table]":
    import pyarrow as pa

    for file in files.to_pylist():
        rows = islice(_described(file["number"] << _ROW_BITS, Path(file["path"]), Path(root), engine), limit)
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            yield pa.Table.from_pylist(chunk, schema=_schema())


def _described(start: int, path: Path, root: Path, engine: EngineSettings) -> Iterator[Mapping[str, Any]]:
    """Each row with what is known of it; the last may be a fault instead, for the driver to raise."""
    position = start - 1
    try:
        router = _router(engine.pool, engine.draft_tokens, engine.learn)
        for position, row in enumerate(read_prompt_file(path, root), start):
            facts = {"id": json.dumps(row.id), "digest": digest(row), "group": _group(row, router)}
            yield {"position": position, "row": _encode_row(row), **facts}
    except DareError as error:
        yield {"position": position + 1, "fault": str(error)}


@lru_cache(1)
def _router(pool: Path | str | None, drafts: int, learns: bool) -> "Router | None":
    """None too for a pool that is to be made by learning."""
    if isinstance(pool, str):
        from vllm_dare.store.mirror import open_mirror

        open_mirror(pool, learns=learns)[0].close()  # what was fetched stays mapped
    if pool is None or (learns and not is_pool(pool_directory(pool))):
        return None
    return open_router(EngineSettings("", pool=pool, draft_tokens=drafts))


def _group(row: PromptRow, router: "Router | None") -> str:
    """The group whose text will draft for a row; empty for everybody's."""
    try:
        query = RequestOptions.parse(row.metadata, ANY_ENGINE).query
    except RequestError:  # the engine will say so, in the row's own output
        return ""
    return (query.group if router is None else router.route(query).group) or ""


def _codes(groups: "pa.ChunkedArray") -> Rows:
    encoded = groups.combine_chunks().dictionary_encode()
    codes: npt.NDArray[np.int64] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _number(rows: "pa.Table", plan: Any) -> "pa.Table":
    """The rows that are in a partition, with its number and their place in it."""
    import pyarrow as pa
    import ray

    positions, numbers, places = ray.get(plan)
    asked = rows["position"].to_numpy()
    found = np.minimum(np.searchsorted(positions, asked), len(positions) - 1)
    wanted = (positions[found] == asked) & (numbers[found] != _NOWHERE)
    table = pa.table({"partition": numbers[found], "place": places[found], "row": rows["row"]})
    return table.filter(pa.array(wanted))


def _collect(rows: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    rows = rows.sort_by("place")
    partition = rows["partition"].slice(0, 1)
    return pa.table({"partition": partition, "rows": pa.array([rows["row"].to_pylist()])})
