"""Finding and narrowing contexts against a naive scan."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from vllm_dare.pool import kernels
from vllm_dare.pool.segment import write_segment
from vllm_dare.pool.tokenizer import TokenizerInfo

INFO = TokenizerInfo(name="any", fingerprint="0" * 16, vocab_size=4)
tokens = st.integers(0, 3)
corpora = st.lists(st.lists(tokens, max_size=40), min_size=1, max_size=8).filter(any)


@njit
def narrow_stepwise(row: Any, context: Any) -> Any:
    """The range of a context, found by its first token and narrowed by one token at a time."""
    lo, hi = kernels.find(row, context, 0, 1)
    array = kernels.int32_array(row[kernels.TOKENS], row[kernels.NUM_TOKENS])
    suffixes = kernels.int32_array(row[kernels.SUFFIXES], row[kernels.NUM_SUFFIXES])
    for size in range(1, context.size):
        lo, hi = kernels.narrow(array, suffixes, lo, hi, size, context, size, 1)
    return lo, hi


@settings(max_examples=150)
@given(corpora, st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=8))
def test_find_and_narrow_equal_a_naive_scan(corpus: list[list[int]], contexts: list[list[int]]) -> None:
    with TemporaryDirectory() as directory:
        documents = [np.array(document, np.int32) for document in corpus]
        segment = write_segment(Path(directory), documents, tokenizer=INFO)
        row = kernels.segment_row(segment)
        text = segment.tokens.tolist()
        for wanted in contexts:
            places = [p for p in range(len(text)) if text[p : p + len(wanted)] == wanted]
            context = np.array(wanted, np.int32)
            for lo, hi in (kernels.find(row, context, 0, context.size), narrow_stepwise(row, context)):
                assert sorted(segment.suffix_array[lo:hi].tolist()) == places


def test_token_outside_the_segment_reads_as_a_separator() -> None:
    array = np.array([5, -1], np.int32)
    assert [kernels.token_at(array, p) for p in (-(2**40), -1, 0, 1, 2, 2**40)] == [-1, -1, 5, -1, -1, -1]


def test_kernels_work_where_nothing_is_writable() -> None:
    """Numba refuses cache=True when it finds no place for the cache, as in a read-only container."""
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from vllm_dare.pool import kernels\n"
        "print(kernels.CACHE, kernels.token_at(np.array([7], np.int32), 0))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["False", "7"], result.stderr
