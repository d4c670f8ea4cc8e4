"""Building a pool on a Ray cluster: documents are read, encoded and sorted where there is room.

The driver keeps all but the text: which document counts, in which group and in which order is decided there,
by the same code as on one machine. Documents then go to the segments that they are in, one task for each
segment, which writes the same file as one machine would.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vllm_dare.errors import DareError, PoolError
from vllm_dare.pool.build import BuildReport, build_encoded, encoded
from vllm_dare.pool.documents import Document, read_documents
from vllm_dare.pool.manifest import SegmentInfo
from vllm_dare.pool.rows import BadRows
from vllm_dare.pool.segment import PoolDocument, Provenance
from vllm_dare.pool.tokenizer import TokenizerInfo, load_tokenizer, tokenizer_info
from vllm_dare.pool.writer import PoolContent, Progress, SegmentPart, Written, check_output, write_part
from vllm_dare.scale.cluster import connected, quiet_data, shuffle_blocks, user_error

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

_CHUNK_ROWS = 1024
_ROW_BITS = 40  # of a position: the row within its file, above that the file
_FIELDS = ("id", "group", "source", "user", "item")
_BAD_ROW, _BAD_FILE = "bad_row", "bad_file"


@dataclass(frozen=True, slots=True)
class RemoteTokens:
    """Token ids that are in the cluster.

    Attributes:
        position: of their document.
        length: how many.
        largest: the largest.
    """

    position: int
    length: int
    largest: int

    def __len__(self) -> int:
        return self.length

    def max(self) -> int:
        return self.largest


def build_pool_on_ray(
    paths: Sequence[Path],
    tokenizer: str,
    output: Path,
    *,
    address: str | None = None,
    overwrite: bool = False,
    bad_rows: BadRows | None = None,
    read_progress: Callable[[int], None] | None = None,
    **options: Any,
) -> BuildReport:
    """`build_pool` of the documents in some files, with the same result but for the time.

    Args:
        paths: see `read_documents`; the same files on every machine.
        tokenizer, overwrite, bad_rows, read_progress: see `build_pool`.
        output: the pool directory, on a file system that every machine writes to.
        address: see `vllm_dare.scale.cluster.connected`.
        options: all others of `build_encoded`.

    Raises:
        PoolError: as `build_pool`.
        DareError: the cluster cannot be used.
    """
    check_output(output, overwrite)
    info = tokenizer_info(load_tokenizer(tokenizer), tokenizer)
    where = str(Path(tokenizer).absolute()) if Path(tokenizer).exists() else tokenizer
    bad_rows = bad_rows or BadRows()
    with connected(address):
        try:
            documents = _read_all(paths, where)
            return build_encoded(
                _known(documents, paths, bad_rows, read_progress),
                info,
                output.absolute(),
                overwrite=overwrite,
                bad_rows=bad_rows,
                write_segments=_Writer(documents),
                **options,
            )
        except DareError:
            raise
        except Exception as error:  # Ray raises whatever its parts raise
            if (ours := user_error(error)) is not None:
                raise ours from None
            raise


def _read_all(paths: Sequence[Path], tokenizer: str) -> Any:
    """All documents with their token ids, in the cluster's memory."""
    items = [{"number": number, "path": str(path.absolute())} for number, path in enumerate(paths)]
    rows = quiet_data().from_items(items, override_num_blocks=len(items))
    rows = rows.map_batches(_read, batch_size=1, batch_format="pyarrow")
    # Blocks of a few rows, so that a single large file keeps all machines busy.
    rows = rows.repartition(target_num_rows_per_block=_CHUNK_ROWS)
    return rows.map_batches(
        _encode, batch_size=None, batch_format="pyarrow", fn_args=[tokenizer]
    ).materialize()


def _read(files: "pa.Table") -> Iterator["pa.Table"]:
    import pyarrow as pa

    for file in files.to_pylist():
        rows = _described(file["number"] << _ROW_BITS, Path(file["path"]))
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            yield pa.Table.from_pylist(chunk, schema=_schema())


class _Reasons(BadRows):
    """Keeps what is wrong with rows, for the driver to report in order."""

    def __init__(self) -> None:
        super().__init__(skip=True)
        self._reasons: list[str] = []

    def report(self, reason: str) -> None:
        self._reasons.append(reason)

    def take(self) -> list[str]:
        reasons, self._reasons = self._reasons, []
        return reasons


def _described(start: int, path: Path) -> Iterator[dict[str, Any]]:
    """Each document, bad row and, at the end, what is wrong with the file, each with its position."""
    for offset, row in enumerate(_documents_and_faults(path)):
        yield row | {"position": start + offset}


def _documents_and_faults(path: Path) -> Iterator[dict[str, Any]]:
    reasons = _Reasons()
    try:
        for document in read_documents([path], reasons):
            yield from ({_BAD_ROW: reason} for reason in reasons.take())
            ids = None if document.token_ids is None else document.token_ids.tobytes()
            fields = {name: getattr(document, name) for name in _FIELDS}
            yield fields | {"text": document.text, "tokens": ids}
        yield from ({_BAD_ROW: reason} for reason in reasons.take())
    except PoolError as error:
        yield {_BAD_FILE: str(error)}


def _schema() -> "pa.Schema":
    import pyarrow as pa

    texts = [(name, pa.string()) for name in (*_FIELDS, "text", _BAD_ROW, _BAD_FILE)]
    return pa.schema([("position", pa.int64()), ("tokens", pa.large_binary()), *texts])


@lru_cache(1)
def _tokenizer(name: str) -> "Tokenizer":
    return load_tokenizer(name)


def _encode(rows: "pa.Table", tokenizer: str) -> "pa.Table":
    """The same rows with token ids, how many and the largest, in place of text."""
    import pyarrow as pa

    columns = rows.select([*_FIELDS, "text", "tokens"]).to_pylist()
    is_document = [row["id"] is not None for row in columns]
    documents = [_document(row) for row, wanted in zip(columns, is_document, strict=True) if wanted]
    ids = iter(ids for _, ids in encoded(documents, _tokenizer(tokenizer), None))
    tokens = [next(ids) if wanted else np.empty(0, np.int32) for wanted in is_document]
    rows = rows.drop_columns(["text", "tokens"])
    rows = rows.append_column("tokens", pa.array([part.tobytes() for part in tokens], pa.large_binary()))
    rows = rows.append_column("length", pa.array([len(part) for part in tokens], pa.int64()))
    return rows.append_column("largest", pa.array([int(part.max(initial=-1)) for part in tokens], pa.int64()))


def _document(row: Mapping[str, Any]) -> Document:
    tokens = None if row["tokens"] is None else np.frombuffer(row["tokens"], np.int32)
    return Document(**{name: row[name] for name in _FIELDS}, text=row["text"], token_ids=tokens)


def _known(
    documents: Any, paths: Sequence[Path], bad_rows: BadRows, progress: Callable[[int], None] | None
) -> Iterator[tuple[Document, np.ndarray]]:
    """What the driver knows of each document, in the order of the files.

    Raises:
        PoolError: a file cannot be read; or, unless skipped, a bad row.
    """
    import pyarrow as pa

    columns = ["position", "length", "largest", *_FIELDS, _BAD_ROW, _BAD_FILE]
    tables = list(documents.select_columns(columns).iter_batches(batch_size=None, batch_format="pyarrow"))
    if not tables:
        return
    num_read = 0
    for batch in pa.concat_tables(tables).sort_by("position").to_batches(_CHUNK_ROWS):
        for row in batch.to_pylist():
            path = paths[row["position"] >> _ROW_BITS]
            if (fault := row[_BAD_FILE]) is not None:
                raise PoolError(_as_given(fault, path))
            if (fault := row[_BAD_ROW]) is not None:
                bad_rows.report(_as_given(fault, path))
                continue
            fields = {name: row[name] for name in _FIELDS} | {"source": _as_given(row["source"], path)}
            tokens = RemoteTokens(row["position"], row["length"], row["largest"])
            yield Document(**fields), cast(np.ndarray, tokens)
            num_read += 1
        if progress is not None:
            progress(num_read)


def _as_given(message: str, path: Path) -> str:
    """With the path as the user gave it, which workers could not use."""
    return message.replace(str(path.absolute()), str(path), 1)


class _Writer:
    """`WriteSegments` by tasks of the cluster.

    Args:
        documents: what `_read_all` gave.
    """

    def __init__(self, documents: Any) -> None:
        self._documents = documents

    def __call__(
        self, content: PoolContent, parts: Sequence[SegmentPart], directory: Path, progress: Progress | None
    ) -> Written:
        import ray

        settings = _SegmentSettings(directory, content.tokenizer, content.provenance, content.model)
        placed = self._documents.map_batches(_spread, batch_format="pyarrow", fn_args=[ray.put(_plan(parts))])
        written = placed.groupby("part", num_partitions=shuffle_blocks(len(parts))).map_groups(
            _write, batch_format="pyarrow", fn_args=[settings]
        )
        found: dict[int, tuple[str, SegmentInfo]] = {
            number: write_part(directory, [], content.tokenizer, content.provenance, content.model)
            for number, part in enumerate(parts)
            if not part.documents
        }
        num_done, num_total = 0, sum(part.num_tokens for part in parts)
        for row in written.iter_rows():
            found[row["part"]] = row["name"], SegmentInfo(**json.loads(row["info"]))
            num_done += found[row["part"]][1].num_tokens
            if progress is not None:
                progress(num_done, num_total)
        return [found[number] for number in range(len(parts))]


@dataclass(frozen=True)
class _SegmentSettings:
    directory: Path
    tokenizer: TokenizerInfo
    provenance: Provenance
    model: str | None


_Plan = tuple[np.ndarray, ...]


def _plan(parts: Sequence[SegmentPart]) -> _Plan:
    """Where each document goes: positions, ascending, and for each the part, the place in it and the key."""
    places = [
        (cast(RemoteTokens, document.tokens).position, number, place, document.key)
        for number, part in enumerate(parts)
        for place, document in enumerate(part.documents)
    ]
    places.sort()
    columns = zip(*places, strict=True) if places else ((),) * 4
    kinds = (np.int64, np.int64, np.int64, np.uint64)
    return tuple(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))


def _spread(documents: "pa.Table", plan: Any) -> "pa.Table":
    """Each document as often as it is in a segment, with the part, the place in it and the key."""
    import pyarrow as pa
    import ray

    positions, parts, places, keys = ray.get(plan)
    asked = documents["position"].to_numpy()
    begins, ends = (np.searchsorted(positions, asked, side=side) for side in ("left", "right"))
    times = ends - begins
    rows = np.repeat(np.arange(len(asked)), times)
    found = np.repeat(begins - np.cumsum(times) + times, times) + np.arange(times.sum())
    return pa.table(
        {
            "part": parts[found],
            "place": places[found],
            "key": keys[found],
            "tokens": documents["tokens"].take(pa.array(rows)),
        }
    )


def _write(documents: "pa.Table", settings: _SegmentSettings) -> "pa.Table":
    """Write the segment of one part."""
    import pyarrow as pa

    documents = documents.sort_by("place")
    columns = (documents[name].to_pylist() for name in ("tokens", "key"))
    passages = [
        PoolDocument(np.frombuffer(tokens, np.int32), key) for tokens, key in zip(*columns, strict=True)
    ]
    name, info = write_part(
        settings.directory, passages, settings.tokenizer, settings.provenance, settings.model
    )
    return pa.table(
        {"part": documents["part"].slice(0, 1), "name": [name], "info": [json.dumps(asdict(info))]}
    )
