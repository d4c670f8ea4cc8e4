"""Small corpora of token ids, which need no tokenizer."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from vllm_dare.evaluation.corpus import Corpus
from vllm_dare.evaluation.walk import Text
from vllm_dare.pool.tokenizer import TokenizerInfo

VOCAB_SIZE = 100


@pytest.fixture
def make_corpus() -> Callable[..., Corpus]:
    """Makes a corpus of (id to token ids, id to group)."""

    def make(outputs: Mapping[str, Sequence[int]], groups: Mapping[str, str] | None = None) -> Corpus:
        texts = {
            name: Text(name, np.array(output, np.int32), group=(groups or {}).get(name))
            for name, output in outputs.items()
        }
        info = TokenizerInfo(name="numbers", fingerprint="0" * 16, vocab_size=VOCAB_SIZE)
        return Corpus(texts, info, [("numbers.jsonl", "0" * 64)], 0)

    return make
