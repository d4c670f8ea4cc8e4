"""A batch of learned text: one file, on its way from an engine to a pool.

It is no segment: it is never drafted from, so that nothing in it is sorted.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from vllm_dare.errors import PoolError
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.segment import Provenance
from vllm_dare.pool.tensor_file import NAME_LENGTH, content_hash, open_tensor_file, write_tensor_file
from vllm_dare.pool.tokenizer import TokenizerInfo

_KIND = "live-batch"
_FORMAT_VERSION = 1
_LAYOUT = {"document_keys": "U64", "lengths": "I32", "groups": "I32", "provenances": "I32", "tokens": "I32"}
_PROVENANCES: tuple[Provenance, ...] = get_args(Provenance)
_NO_GROUP = -1


@dataclass(frozen=True)
class Batch:
    """What a file holds.

    Attributes:
        tokenizer: the tokenizer of every token.
        created_at: when it was written, in seconds since 1970.
        documents: the texts, the oldest first.
    """

    tokenizer: TokenizerInfo
    created_at: float
    documents: list[LiveDocument]


def write_batch(
    directory: Path, documents: Sequence[LiveDocument], tokenizer: TokenizerInfo, *, prefix: str
) -> Path:
    """Write ``<prefix><content hash>.safetensors``.

    Args:
        directory: where to; must exist.
        documents: at least one.
        tokenizer: the tokenizer of their tokens.
        prefix: what the name begins with.
    """
    names = sorted({document.group for document in documents if document.group is not None})
    places = {name: place for place, name in enumerate(names)}
    tensors = {
        "document_keys": np.array([document.key for document in documents], np.uint64),
        "lengths": _integers(len(document.tokens) for document in documents),
        "groups": _integers(
            _NO_GROUP if document.group is None else places[document.group] for document in documents
        ),
        "provenances": _integers(_PROVENANCES.index(document.provenance) for document in documents),
        "tokens": np.concatenate([document.tokens for document in documents]).astype(np.int32),
    }
    metadata = {
        "kind": _KIND,
        "format_version": str(_FORMAT_VERSION),
        "tokenizer": tokenizer.model_dump_json(),
        "created_at": str(time.time()),
        "groups": json.dumps(names),
    }
    return write_tensor_file(directory, tensors, metadata, prefix=prefix)


def read_batch(path: Path) -> Batch:
    """Read and check a file in full.

    Raises:
        PoolError: it is missing, damaged, no such file, or of a newer format.
    """
    file = open_tensor_file(path, kind=_KIND, version=_FORMAT_VERSION, layout=_LAYOUT)
    if not is_intact(path):
        raise _damaged(path, "its checksum is not its name")
    try:
        tokenizer = TokenizerInfo.model_validate_json(file.metadata["tokenizer"])
        names = json.loads(file.metadata["groups"])
        created_at = float(file.metadata["created_at"])
    except (KeyError, ValueError, RecursionError, ValidationError):
        raise _damaged(path, "its header is not complete") from None
    keys, lengths, groups, provenances, tokens = (file.tensors[name] for name in _LAYOUT)
    consistent = (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(keys) == len(lengths) == len(groups) == len(provenances)
        and lengths.min(initial=1) >= 1
        and int(lengths.sum(dtype=np.int64)) == len(tokens)
        and _within(groups, _NO_GROUP, len(names))
        and _within(provenances, 0, len(_PROVENANCES))
        and _within(tokens, 0, tokenizer.vocab_size)
    )
    if not consistent:
        raise _damaged(path, "its arrays disagree")
    texts = np.split(tokens, np.cumsum(lengths, dtype=np.int64)[:-1]) if len(lengths) else []
    documents = [
        LiveDocument(text, None if group == _NO_GROUP else names[group], _PROVENANCES[provenance], key)
        for text, group, provenance, key in zip(
            texts, groups.tolist(), provenances.tolist(), keys.tolist(), strict=True
        )
    ]
    return Batch(tokenizer, created_at, documents)


def batch_size(path: Path) -> tuple[int, int]:
    """How many documents and tokens a file holds, without reading them.

    Raises:
        PoolError: it is missing, or its header is damaged.
    """
    tensors = open_tensor_file(path, kind=_KIND, version=_FORMAT_VERSION, layout=_LAYOUT).tensors
    return len(tensors["lengths"]), len(tensors["tokens"])


def is_intact(path: Path) -> bool:
    """Whether a file's content is what its name says.

    Raises:
        PoolError: it cannot be read.
    """
    return content_hash(path) == path.stem[-NAME_LENGTH:]


def _integers(numbers: Any) -> np.ndarray:
    return np.array(list(numbers), np.int32)


def _within(array: np.ndarray, least: int, end: int) -> bool:
    return bool(array.min(initial=least) >= least and array.max(initial=least) < end)


def _damaged(path: Path, fault: str) -> PoolError:
    return PoolError(
        f"The learned text {path} is damaged ({fault}); remove it, in the store or in the cache."
    )
