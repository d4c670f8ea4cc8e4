"""The tokenizer that a pool's token ids belong to."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from vllm_dare.errors import PoolError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_VOCABULARY_SIZE = 2**22  # tables with a row for each token must be affordable

_FILE_NAME = "tokenizer.json"
_HUB_SECONDS = 5.0


class TokenizerInfo(BaseModel):
    """What a pool remembers of its tokenizer.

    Attributes:
        name: hub id, or the last path component of a local tokenizer; only for messages.
        fingerprint: see `vocabulary_fingerprint`; two tokenizers are the same iff these are equal.
        vocab_size: the largest token id plus one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{16}$")
    vocab_size: int = Field(ge=1, le=MAX_VOCABULARY_SIZE)


def load_tokenizer(name: str) -> "Tokenizer":
    """Load a tokenizer that encodes whole texts: without truncation and without padding.

    Args:
        name: a directory that holds ``tokenizer.json``, such a file itself, or a hub id.

    Raises:
        PoolError: there is no such tokenizer, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    file = path / _FILE_NAME if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file) if path.exists() else _from_hub(name))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise PoolError(
            f"Cannot load the tokenizer {name!r} ({_first_line(error)}); give a hub id, or a directory "
            "with a tokenizer.json, which AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR) writes."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_info(tokenizer: "Tokenizer", name: str) -> TokenizerInfo:
    """Describe a tokenizer that `load_tokenizer` found under ``name``."""
    return vocabulary_info(tokenizer.get_vocab(with_added_tokens=True), name)


def vocabulary_info(vocabulary: Mapping[str, int], name: str) -> TokenizerInfo:
    """Describe the tokenizer ``name`` by its vocabulary, see `vocabulary_fingerprint`.

    Raises:
        PoolError: the vocabulary is empty.
    """
    if not vocabulary:
        raise PoolError(f"The tokenizer {name!r} has an empty vocabulary; give the tokenizer of your model.")
    return TokenizerInfo(
        name=_public_name(name),
        fingerprint=vocabulary_fingerprint(vocabulary),
        vocab_size=max(vocabulary.values()) + 1,
    )


def vocabulary_fingerprint(vocab: Mapping[str, int]) -> str:
    """Sixteen hex digits that two tokenizers share iff they have the same vocabulary.

    Args:
        vocab: token to id, added tokens included, as ``get_vocab()`` of both tokenizers and transformers
            gives it.
    """
    pairs = sorted((token_id, token) for token, token_id in vocab.items())
    return hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()[:16]


def _from_hub(name: str) -> str:
    """The path of a model's ``tokenizer.json``, from the hub or, if it does not answer, from the local cache.

    The hub is asked once whether it answers: a download that cannot begin is tried again for minutes.
    """
    if name.startswith(("/", "./", "../", "~")):
        raise PoolError(f"there is no directory {name}")
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:  # of the hub, of the library for HTTP below it, or of the system
        try:
            return hf_hub_download(name, _FILE_NAME, local_files_only=True)
        except LocalEntryNotFoundError:
            raise PoolError(_why_not(error)) from None
    return hf_hub_download(name, _FILE_NAME)


def _why_not(error: Exception) -> str:
    """Why the hub does not give a model."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "it is no file here, and HF_HUB_OFFLINE is set, but it is not in the hub's local cache"
    if isinstance(error, HfHubHTTPError):
        return f"it is no file here, and the model hub does not give it: HTTP {error.response.status_code}"
    return f"it is no file here, and the model hub cannot be reached: {_first_line(error)}"


def _public_name(name: str) -> str:
    """A name that means something on another machine too."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    path = path.resolve()
    return path.parent.name or path.name if path.name == _FILE_NAME else path.name or name


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
