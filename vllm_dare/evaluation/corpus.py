"""A corpus to replay: documents, with prompts where they have them, as token ids."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from vllm_dare.errors import DareError, PoolError
from vllm_dare.evaluation.walk import Text
from vllm_dare.pool.documents import Document, read_documents
from vllm_dare.pool.files import sha256
from vllm_dare.pool.rows import BadRows, read_rows
from vllm_dare.pool.tokenizer import (
    TokenizerInfo,
    load_tokenizer,
    tokenizer_info,
    vocabulary_fingerprint,
)

MISTRAL_V1 = "mistral-v1"
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True, eq=False)
class Corpus:
    """The documents that have text.

    Attributes:
        texts: by id, in the files' order.
        tokenizer: the tokenizer of their tokens.
        files: file name and SHA-256 of each file.
        num_empty: how many documents were left out because they have no text.
    """

    texts: dict[str, Text]
    tokenizer: TokenizerInfo
    files: list[tuple[str, str]]
    num_empty: int


class Encoder(Protocol):
    """What turns texts into token ids."""

    info: TokenizerInfo

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""


def read_corpus(
    paths: Sequence[Path],
    tokenizer: str,
    *,
    prompts: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Read documents with id, text or token_ids, and if there are any group and prompt.

    Args:
        paths: see `read_documents`.
        tokenizer: ``"mistral-v1"``, or what `load_tokenizer` takes.
        prompts: whether the prompts are read.
        progress: called with the number of documents read so far.

    Raises:
        DareError: a file or the tokenizer cannot be used, two documents have one id, or there are fewer
            than two documents.
    """
    encoder = load_encoder(tokenizer)
    texts: dict[str, Text] = {}
    places: dict[str, str] = {}
    num_read = 0
    remaining = ((document, prompt) for path in paths for document, prompt in _rows(path, prompts))
    while batch := list(islice(remaining, _BATCH_DOCUMENTS)):
        for text, (document, _) in zip(_texts(batch, encoder), batch, strict=True):
            if document.id in places:
                raise DareError(
                    f"{document.source} has the id {document.id!r}, as {places[document.id]} has; "
                    "give every document an id of its own."
                )
            places[document.id] = document.source
            if len(text.output):
                texts[document.id] = text
        num_read += len(batch)
        if progress is not None:
            progress(num_read)
    if len(texts) < 2:
        held = "one document" if texts else "no document"
        raise DareError(
            f"{' and '.join(map(str, paths))} holds {held} with text, but replay drafts for some from "
            "others; give at least two."
        )
    files = [(path.name, sha256(path)) for path in paths]
    return Corpus(texts, encoder.info, files, num_read - len(texts))


def _rows(path: Path, prompts: bool) -> Iterable[tuple[Document, str | None]]:
    """Each document with its prompt. The file is read once for either: pool documents have no prompts."""
    if not prompts:
        return ((document, None) for document in read_documents([path]))
    rows = read_rows(path, ("prompt",), BadRows())
    return (
        (document, _prompt(source, row.get("prompt")))
        for document, (source, row) in zip(read_documents([path]), rows, strict=True)
    )


def _prompt(source: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DareError(f"{source} has a prompt that is not a string; correct it, or use --no-prompts.")
    return value


def _texts(batch: Sequence[tuple[Document, str | None]], encoder: Encoder) -> list[Text]:
    written = [document.text or "" for document, _ in batch if document.token_ids is None]
    outputs = iter(encoder.encode(written))
    prompts = encoder.encode([prompt or "" for _, prompt in batch])
    return [
        Text(
            id=document.id,
            output=_output(document, encoder.info)
            if document.token_ids is not None
            else np.array(next(outputs), np.int32),
            prompt=np.array(prompt, np.int32),
            group=document.group,
        )
        for (document, _), prompt in zip(batch, prompts, strict=True)
    ]


def _output(document: Document, tokenizer: TokenizerInfo) -> np.ndarray:
    token_ids = document.token_ids
    assert token_ids is not None
    if len(token_ids) and token_ids.max() >= tokenizer.vocab_size:
        raise DareError(
            f"{document.source} has the token id {token_ids.max()}, beyond the vocabulary of "
            f"{tokenizer.name} ({tokenizer.vocab_size} tokens); give the tokenizer that made the ids."
        )
    return token_ids


def load_encoder(name: str) -> Encoder:
    """The encoder of a tokenizer.

    Args:
        name: ``"mistral-v1"``, the 32 k tokenizer in the package mistral-common, or what `load_tokenizer`
            takes.

    Raises:
        DareError: there is no such tokenizer, or mistral-common is missing.
    """
    if name == MISTRAL_V1:
        return _MistralEncoder()
    try:
        return _TokenizersEncoder(name)
    except PoolError as error:
        raise DareError(f"{error} Here {MISTRAL_V1} is a tokenizer, too.") from None


class _TokenizersEncoder:
    def __init__(self, name: str) -> None:
        self._tokenizer = load_tokenizer(name)
        self.info = tokenizer_info(self._tokenizer, name)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


class _MistralEncoder:
    def __init__(self) -> None:
        try:
            from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
        except ImportError:
            raise DareError(
                f"The tokenizer {MISTRAL_V1} comes with the package mistral-common, which vLLM brings along; "
                "run `pip install mistral-common`, or give another tokenizer."
            ) from None
        self._tokenizer = MistralTokenizer.v1().instruct_tokenizer.tokenizer
        vocabulary = {token: i for i, token in enumerate(self._tokenizer.vocab())}
        self.info = TokenizerInfo(
            name=MISTRAL_V1,
            fingerprint=vocabulary_fingerprint(vocabulary),
            vocab_size=self._tokenizer.n_words,
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, bos=False, eos=False) for text in texts]
