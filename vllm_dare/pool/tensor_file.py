"""Content-addressed ``.safetensors`` files of one-dimensional arrays.

The header is read and validated here rather than by the safetensors library for two reasons: opening must
cost the same whatever the size of the file, and the library writes the metadata in random order, which would
give the same content different hashes. The library reads these files all the same.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vllm_dare.errors import PoolError
from vllm_dare.pool.files import open_file, sha256, temporary_file
from vllm_dare.pool.json_reader import parse_json
from vllm_dare.pool.mapping import map_file

SUFFIX = ".safetensors"
NAME_LENGTH = 32
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_HEADER_VALUES = 1000
# A list of strings, whose inside is left to the parser.
_NAMES = re.compile(r'\s*\[\s*(?:"(?:[^"\\]++|\\.)*+"\s*+(?:,\s*+(?=")|(?=\])))*+\]\s*', re.DOTALL)
_DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8")}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorFile:
    """A mapped file.

    Attributes:
        metadata: the header's ``__metadata__``.
        tensors: name to read-only array, [n], backed by the file.
        num_bytes: size of the file.
    """

    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]
    num_bytes: int


def content_hash(path: Path) -> str:
    """The first 32 hex digits of the SHA-256 of a file's content, which are its name.

    Raises:
        PoolError: it cannot be read.
    """
    try:
        return sha256(path)[:NAME_LENGTH]
    except OSError as error:
        raise _unreadable(path, error) from None


def write_tensor_file(
    directory: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, prefix: str = ""
) -> Path:
    """Write ``<prefix><content hash>.safetensors`` and return its path.

    Args:
        directory: where to; must exist.
        tensors: name to array, [n], float32, int32 or uint64; wider dtypes first, so that each is aligned.
        metadata: the header's ``__metadata__``.
        prefix: what the name begins with.
    """
    digest = hashlib.sha256()
    with temporary_file(directory) as file:
        for part in (_encode_header(tensors, metadata), *tensors.values()):
            data = part if isinstance(part, bytes) else np.ascontiguousarray(part).data.cast("B")
            digest.update(data)
            file.write(data)
    path = directory / f"{prefix}{digest.hexdigest()[:NAME_LENGTH]}{SUFFIX}"
    os.replace(file.name, path)
    return path


def open_tensor_file(path: Path, *, kind: str, version: int, layout: Mapping[str, str]) -> TensorFile:
    """Map a file, after its header has been found to describe it exactly.

    Args:
        path: the file.
        kind: what ``__metadata__["kind"]`` must be.
        version: what ``__metadata__["format_version"]`` must be.
        layout: name to safetensors dtype of every tensor that must be there.

    Raises:
        PoolError: the file is missing, unreadable, damaged, of another kind or of another format.
    """
    try:
        with open_file(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            header, data_start = _read_header(file, num_bytes)
            metadata = _metadata(header)
            _check_format(path, metadata, kind, version)
            spans = _spans(header, layout, data_start, num_bytes)
            data = map_file(file.fileno(), num_bytes)
    except OSError as error:
        raise _unreadable(path, error) from None
    except _DamagedError as error:
        raise PoolError(
            f"The file {path} is damaged ({error}); rebuild the pool, or copy it again."
        ) from None
    tensors = {name: data[begin:end].view(_DTYPES[layout[name]]) for name, (begin, end) in spans.items()}
    return TensorFile(metadata, tensors, num_bytes)


def group_names(metadata: Mapping[str, str]) -> list[str] | None:
    """The names, JSON in ``metadata["groups"]``; None if there are none or they are damaged."""
    encoded = metadata.get("groups", "")
    if not _NAMES.fullmatch(encoded):  # any other list may take twenty times its size in memory
        return None
    try:
        names: list[str] = parse_json(encoded, most_values=len(encoded))
    except ValueError:
        return None
    return names


def _unreadable(path: Path, error: OSError) -> PoolError:
    if isinstance(error, FileNotFoundError):
        return PoolError(f"The file {path} is missing; rebuild the pool, or copy it again in full.")
    return PoolError(
        f"Cannot read {path} ({error.strerror or error}); check the file's permissions and disk."
    )


class _DamagedError(Exception):
    """What is wrong with a header; becomes a PoolError that names the file."""


def _encode_header(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        dtype = _DTYPE_NAMES[array.dtype]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _LENGTH_BYTES)  # keeps the arrays aligned
    return len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded


def _read_header(file: BinaryIO, num_bytes: int) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the data begin."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if num_bytes < _LENGTH_BYTES or length > min(num_bytes - _LENGTH_BYTES, _MAX_HEADER_BYTES):
        raise _DamagedError("its header is longer than the file")
    try:
        header = parse_json(file.read(length), _MAX_HEADER_VALUES)
    except ValueError:
        raise _DamagedError("its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise _DamagedError("its header is not a JSON object")
    return header, _LENGTH_BYTES + length


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _DamagedError("its header has no metadata")
    return metadata


def _check_format(path: Path, metadata: dict[str, str], kind: str, version: int) -> None:
    found = metadata.get("format_version", "")
    if metadata.get("kind") != kind or not (found.isascii() and found.isdigit() and len(found) < 10):
        raise _DamagedError(f"it is not a vllm-dare {kind} file")
    if int(found) > version:
        raise PoolError(
            f"The file {path} has format {found} and was written by a newer vllm-dare; upgrade vllm-dare."
        )
    if int(found) < version:
        raise PoolError(f"The file {path} has format {found}, of an older vllm-dare; rebuild the pool.")


def _spans(
    header: dict[str, Any], layout: Mapping[str, str], data_start: int, num_bytes: int
) -> dict[str, tuple[int, int]]:
    """First and last byte of each tensor within the file; together they fill it without gap or overlap."""
    if header.keys() != layout.keys():
        raise _DamagedError(f"it does not hold exactly the arrays {', '.join(layout)}")
    spans = {name: _span(name, header[name], layout[name]) for name in layout}
    expected = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda span: span[1]):
        if begin != expected or (data_start + begin) % _DTYPES[layout[name]].itemsize:
            raise _DamagedError(f"the array {name} is misplaced")
        expected = end
    if data_start + expected != num_bytes:
        raise _DamagedError(f"it has {num_bytes} bytes where its header asks for {data_start + expected}")
    return {name: (data_start + begin, data_start + end) for name, (begin, end) in spans.items()}


def _span(name: str, entry: Any, dtype: str) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.get("dtype") != dtype:
        raise _DamagedError(f"the array {name} is not of type {dtype}")
    (length,) = _integers(name, entry.get("shape"), 1)
    begin, end = _integers(name, entry.get("data_offsets"), 2)
    if end - begin != length * _DTYPES[dtype].itemsize:
        raise _DamagedError(f"the shape and the offsets of the array {name} disagree")
    return begin, end


def _integers(name: str, value: Any, count: int) -> list[int]:
    valid = isinstance(value, list) and len(value) == count and all(type(v) is int and v >= 0 for v in value)
    if not valid:
        raise _DamagedError(f"the array {name} has no valid shape or offsets")
    return list(value)
