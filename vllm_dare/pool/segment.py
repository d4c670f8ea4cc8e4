"""One immutable suffix-array segment, which is one memory-mapped ``.safetensors`` file."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_dare.errors import PoolError
from vllm_dare.pool.suffix_array import MAX_LENGTH, SEPARATOR, SuffixIndex, build_suffix_index, find_fault
from vllm_dare.pool.tensor_file import TensorFile, content_hash, open_tensor_file, write_tensor_file
from vllm_dare.pool.tokenizer import MAX_VOCABULARY_SIZE, TokenizerInfo
from vllm_dare.shown import shown_name

SEGMENT_FORMAT_VERSION = 2
_KIND = "segment"
_LAYOUT = {
    "document_keys": "U64",
    "tokens": "I32",
    "suffix_array": "I32",
    "heads": "I32",
    "head_starts": "I32",
}

__all__ = ["SEPARATOR", "PoolDocument", "Provenance", "Segment", "SegmentHeader", "write_segment"]

Provenance = Literal["strict", "relaxed", "external"]


class PoolDocument(NamedTuple):
    """A document, or a passage of one, as pools keep it.

    Attributes:
        tokens: int32[length].
        key: whose it is, see `vllm_dare.pool.assignments.document_key`; 0 if that is not known.
    """

    tokens: np.ndarray
    key: int = 0


class SegmentHeader(BaseModel):
    """What a segment says about itself.

    Attributes:
        tokenizer_name: for messages.
        tokenizer_fingerprint: see `vocabulary_fingerprint`.
        vocab_size: every token is smaller than this.
        num_documents: how many documents, each followed by one separator.
        num_tokens: how many tokens, separators not counted.
        provenance: whether the text was written under strict or relaxed verification, or elsewhere.
        model: name of the model that wrote the text; None if not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer_name: str
    tokenizer_fingerprint: str
    vocab_size: int = Field(ge=1, le=MAX_VOCABULARY_SIZE)
    num_documents: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    provenance: Provenance
    model: str | None = None


class Segment:
    """A read-only segment; `open` maps one, `write_segment` makes one.

    Attributes:
        path: the file.
        name: the file's stem, the first 32 hex digits of the SHA-256 of its content.
        identity: 60 bits of that as a number; what is remembered of a segment goes by it.
        num_bytes: size of the file.
        header: see `SegmentHeader`.
        document_keys: uint64[num_documents], see `PoolDocument`.
        tokens: int32[n], each document's tokens followed by `SEPARATOR`.
        suffix_array: int32[num_tokens], see `SuffixIndex`.
        heads: int32[u], the distinct tokens, ascending.
        head_starts: int32[u + 1], see `SuffixIndex`.
    """

    def __init__(self, path: Path, header: SegmentHeader, file: TensorFile) -> None:
        self.path = path
        self.name = path.stem
        self.identity = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "little") >> 4
        self.num_bytes = file.num_bytes
        self.header = header
        self.document_keys = file.tensors["document_keys"]
        self.tokens = file.tensors["tokens"]
        self.suffix_array = file.tensors["suffix_array"]
        self.heads = file.tensors["heads"]
        self.head_starts = file.tensors["head_starts"]

    @classmethod
    def open(cls, path: Path) -> "Segment":
        """Map a segment in time that does not depend on its size; its header is validated, its data are not.

        Raises:
            PoolError: the file is missing, damaged, not a segment, or of a newer format.
        """
        file = open_tensor_file(path, kind=_KIND, version=SEGMENT_FORMAT_VERSION, layout=_LAYOUT)
        metadata = {k: v for k, v in file.metadata.items() if k not in ("kind", "format_version")}
        try:
            segment = cls(path, SegmentHeader.model_validate(metadata), file)
        except ValidationError as error:
            field = shown_name(".".join(map(str, error.errors()[0]["loc"])))
            raise _damaged(path, f"its header has a bad {field}") from None
        segment._check_lengths()
        return segment

    def documents(self) -> Iterator[np.ndarray]:
        """The tokens of each document, int32[length], as views of `tokens`."""
        start = 0
        for end in np.flatnonzero(self.tokens == SEPARATOR):
            yield self.tokens[start:end]
            start = int(end) + 1

    def keyed_documents(self) -> Iterator[PoolDocument]:
        """Each document with its key; the tokens are views."""
        return map(PoolDocument, self.documents(), self.document_keys.tolist())

    def verify_checksum(self) -> None:
        """Read the file, about a second a GB, and compare its content with its name.

        Raises:
            PoolError: they differ.
        """
        if content_hash(self.path) != self.name:
            raise _damaged(self.path, "its checksum is not its name")

    def verify(self) -> None:
        """Check the content in full: checksum, token ids, order of the suffix array.

        Raises:
            PoolError: the first thing found wrong.
        """
        self.verify_checksum()
        index = SuffixIndex(self.suffix_array, self.heads, self.head_starts)
        fault = find_fault(self.tokens, index, self.header.vocab_size)
        if fault is not None:
            raise _damaged(self.path, fault)

    def _check_lengths(self) -> None:
        header = self.header
        consistent = (
            len(self.tokens) == header.num_tokens + header.num_documents <= MAX_LENGTH
            and len(self.document_keys) == header.num_documents
            and len(self.suffix_array) == header.num_tokens
            and len(self.head_starts) == len(self.heads) + 1
            and len(self.heads) <= min(header.num_tokens, header.vocab_size)
        )
        if not consistent:
            raise _damaged(self.path, "the lengths of its arrays disagree")


def write_segment(
    directory: Path,
    documents: Iterable[np.ndarray],
    *,
    tokenizer: TokenizerInfo,
    keys: Sequence[int] | None = None,
    provenance: Provenance = "external",
    model: str | None = None,
) -> Segment:
    """Sort the suffixes of some documents and write them as one segment.

    The same documents in the same order, with the same header, always give the same file.

    Args:
        directory: where to; must exist.
        documents: the token ids of each, [length], integers in [0, vocab_size).
        tokenizer: the tokenizer of the ids.
        keys: of each document, see `PoolDocument`; None where none is known.
        provenance: how the text was written.
        model: name of the model that wrote the text.

    Raises:
        PoolError: more than 2**31 - 1 tokens and separators, or an id outside the vocabulary.
    """
    tokens, num_documents = _join(list(documents), tokenizer)
    header = SegmentHeader(
        tokenizer_name=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        num_documents=num_documents,
        num_tokens=len(tokens) - num_documents,
        provenance=provenance,
        model=model,
    )
    metadata = {key: str(value) for key, value in header.model_dump(exclude_none=True).items()}
    metadata |= {"kind": _KIND, "format_version": str(SEGMENT_FORMAT_VERSION)}
    document_keys = np.zeros(num_documents, np.uint64) if keys is None else np.array(keys, np.uint64)
    tensors = {"document_keys": document_keys, "tokens": tokens, **build_suffix_index(tokens)._asdict()}
    return Segment.open(write_tensor_file(directory, tensors, metadata))


def _join(documents: list[np.ndarray], tokenizer: TokenizerInfo) -> tuple[np.ndarray, int]:
    """int32[n], each document followed by a separator; and the number of documents."""
    length = sum(len(document) + 1 for document in documents)
    if length > MAX_LENGTH:
        raise PoolError(f"A segment holds at most {MAX_LENGTH} tokens, not {length}; split the documents.")
    tokens = np.full(length, SEPARATOR, np.int32)
    start = 0
    for document in documents:
        tokens[start : start + len(document)] = document
        start += len(document) + 1
    # One pass over everything: asking each of a million short documents takes seconds.
    num_separators = int(np.count_nonzero(tokens == SEPARATOR))
    valid = (
        tokens.min(initial=SEPARATOR) >= SEPARATOR and tokens.max(initial=SEPARATOR) < tokenizer.vocab_size
    )
    if not valid or num_separators != len(documents):
        raise PoolError(
            f"A document has token ids outside the vocabulary of {tokenizer.name} "
            f"({tokenizer.vocab_size} tokens); tokenize it with {tokenizer.name}."
        )
    return tokens, len(documents)


def _damaged(path: Path, fault: str) -> PoolError:
    return PoolError(f"The segment {path} is damaged ({fault}); rebuild the pool, or copy the file again.")
