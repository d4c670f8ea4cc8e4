from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.errors import PoolError
from vllm_dare.pool.segment import SEPARATOR, Segment, write_segment
from vllm_dare.pool.tokenizer import TokenizerInfo

INFO = TokenizerInfo(name="any", fingerprint="0" * 16, vocab_size=300_000)


def to_documents(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.array(tokens, np.int32) for tokens in lists]


def suffix(tokens: list[int], start: int) -> list[int]:
    """A suffix up to, and with, its separator."""
    return tokens[start : tokens.index(SEPARATOR, start) + 1]


def check_against_brute_force(segment: Segment) -> None:
    tokens = segment.tokens.tolist()
    starts = segment.suffix_array.tolist()
    assert sorted(starts) == [i for i, token in enumerate(tokens) if token != SEPARATOR]
    assert [suffix(tokens, s) for s in starts] == sorted(suffix(tokens, s) for s in starts)
    assert segment.heads.tolist() == sorted(set(tokens) - {SEPARATOR})
    for head, begin, end in zip(
        segment.heads, segment.head_starts[:-1], segment.head_starts[1:], strict=True
    ):
        places = [place for place, start in enumerate(starts) if tokens[start] == head]
        assert places == list(range(begin, end))


# Few distinct tokens make long repeats.
corpora = st.one_of(
    st.lists(st.lists(st.integers(0, 2), max_size=30), max_size=6),
    st.lists(st.lists(st.integers(0, INFO.vocab_size - 1), max_size=20), max_size=6),
)


@given(corpora)
@settings(max_examples=200)
def test_the_suffixes_are_sorted_as_by_brute_force(lists: list[list[int]]) -> None:
    with TemporaryDirectory() as directory:
        segment = write_segment(Path(directory), to_documents(lists), tokenizer=INFO)
        check_against_brute_force(segment)
        segment.verify()
        assert [document.tolist() for document in segment.documents()] == lists
        assert segment.header.num_documents == len(lists)
        assert segment.header.num_tokens == sum(map(len, lists))


@pytest.mark.parametrize(
    "lists",
    [
        pytest.param([], id="empty"),
        pytest.param([[]], id="one document of no tokens"),
        pytest.param([[7]], id="one token"),
        pytest.param([[5] * 700], id="one repeated token"),
        pytest.param([[5, 6] * 100, [5, 6] * 100], id="the same document twice"),
        pytest.param([list(range(300)), list(range(300))[::-1]], id="more tokens than a byte holds"),
        pytest.param([[0, 255, 256, 65_535, 65_536, 299_999]], id="the whole vocabulary"),
    ],
)
def test_odd_corpora(tmp_path: Path, lists: list[list[int]]) -> None:
    segment = write_segment(tmp_path, to_documents(lists), tokenizer=INFO)
    check_against_brute_force(segment)
    segment.verify()


def test_a_long_document_of_many_distinct_tokens(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, INFO.vocab_size, 300_000).astype(np.int32)
    segment = write_segment(tmp_path, [tokens, tokens[:1000]], tokenizer=INFO)
    assert len(segment.heads) > 65_535
    segment.verify()
    for place in range(0, 300_000, 7919):  # adjacent suffixes, compared token by token
        first, second = (segment.tokens[start:].tolist() for start in segment.suffix_array[place : place + 2])
        assert first <= second


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    documents = to_documents([[1, 2, 3], [3, 2, 1]])
    first, second = (write_segment(tmp_path / d, documents, tokenizer=INFO, model="m") for d in "12")
    assert first.name == second.name
    assert first.path.read_bytes() == second.path.read_bytes()


def test_documents_have_the_keys_they_were_given_or_none(tmp_path: Path) -> None:
    keys = [2**64 - 1, 0, 5]
    written = write_segment(tmp_path, to_documents([[1], [1, 2], []]), tokenizer=INFO, keys=keys)
    found = list(Segment.open(written.path).keyed_documents())
    assert [(tokens.tolist(), key) for tokens, key in found] == [([1], 2**64 - 1), ([1, 2], 0), ([], 5)]
    assert write_segment(tmp_path, to_documents([[1]]), tokenizer=INFO).document_keys.tolist() == [0]


def test_the_safetensors_library_reads_a_segment(tmp_path: Path) -> None:
    segment = write_segment(tmp_path, to_documents([[1, 2], [1]]), tokenizer=INFO)
    arrays = safetensors.numpy.load_file(segment.path)
    assert arrays["tokens"].tolist() == [1, 2, SEPARATOR, 1, SEPARATOR]
    assert np.array_equal(arrays["suffix_array"], segment.suffix_array)


def test_a_segment_says_what_it_is(tmp_path: Path) -> None:
    written = write_segment(
        tmp_path, to_documents([[1]]), tokenizer=INFO, provenance="relaxed", model="Größe/模型"
    )
    header = Segment.open(written.path).header
    assert header.provenance == "relaxed"
    assert header.model == "Größe/模型"
    assert (header.tokenizer_name, header.tokenizer_fingerprint) == (INFO.name, INFO.fingerprint)
    assert header.vocab_size == INFO.vocab_size


def test_arrays_are_read_only_plain_and_aligned(tmp_path: Path) -> None:
    segment = write_segment(tmp_path, to_documents([[1, 2]]), tokenizer=INFO)
    for array in (segment.tokens, segment.suffix_array, segment.heads, segment.head_starts):
        assert type(array) is np.ndarray
        assert array.dtype == np.int32
        assert array.flags.aligned
        with pytest.raises(ValueError, match=r"read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match=r"WRITEABLE"):
            array.flags.writeable = True


def test_an_array_outlives_its_segment_and_its_file(tmp_path: Path) -> None:
    segment = write_segment(tmp_path, to_documents([[1, 2, 3]]), tokenizer=INFO)
    tokens = segment.tokens
    segment.path.unlink()
    del segment
    assert tokens.tolist() == [1, 2, 3, SEPARATOR]


def test_more_segments_can_be_mapped_than_files_may_be_open(tmp_path: Path) -> None:
    import resource

    segment = write_segment(tmp_path, to_documents([[1]]), tokenizer=INFO)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        segments = [Segment.open(segment.path) for _ in range(400)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(s.tokens[0] == 1 for s in segments)


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"outside the vocabulary of any \(300000 tokens\)"):
        write_segment(tmp_path, to_documents([[300_000]]), tokenizer=INFO)
    with pytest.raises(PoolError, match=r"outside the vocabulary"):
        write_segment(tmp_path, to_documents([[-1]]), tokenizer=INFO)
    assert not list(tmp_path.iterdir())


def test_more_than_two_billion_tokens_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    huge = np.broadcast_to(np.int32(1), (2**31 - 1,))
    with pytest.raises(PoolError, match=r"at most 2147483647 tokens, not 2147483648; split"):
        write_segment(tmp_path, [huge], tokenizer=INFO)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vllm_dare.pool.files.os.fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left"):
        write_segment(tmp_path, to_documents([[1]]), tokenizer=INFO)
    assert not list(tmp_path.iterdir())
