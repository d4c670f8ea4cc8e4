from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vllm_dare.errors import PoolError
from vllm_dare.pool.tokenizer import load_tokenizer, tokenizer_info, vocabulary_fingerprint


def test_the_fingerprint_is_that_of_the_vocabulary_and_not_of_its_order() -> None:
    assert vocabulary_fingerprint({"a": 0, "b": 1}) == vocabulary_fingerprint({"b": 1, "a": 0})
    assert vocabulary_fingerprint({"a": 0, "b": 1}) != vocabulary_fingerprint({"a": 1, "b": 0})
    assert vocabulary_fingerprint({"a": 0, "b": 1}) != vocabulary_fingerprint({"a": 0})


def test_a_directory_and_its_file_are_the_same_tokenizer(tokenizer: str) -> None:
    for name in (tokenizer, f"{tokenizer}/tokenizer.json", f"{tokenizer}/"):
        info = tokenizer_info(load_tokenizer(name), name)
        assert info.name == "words"  # no path of this machine
        assert info.vocab_size == 10


def test_the_vocabulary_size_counts_gaps_and_added_tokens(tmp_path: Path, tokenizer: str) -> None:
    loaded = load_tokenizer(tokenizer)
    loaded.add_special_tokens(["<end>"])
    loaded.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_info(load_tokenizer(str(tmp_path)), "x").vocab_size == 11


def test_transformers_sees_the_same_vocabulary(tokenizer: str) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{tokenizer}/tokenizer.json")
    info = tokenizer_info(load_tokenizer(tokenizer), tokenizer)
    assert vocabulary_fingerprint(fast.get_vocab()) == info.fingerprint


def test_truncation_and_padding_are_switched_off(tmp_path: Path, tokenizer: str) -> None:
    cutting = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    cutting.enable_truncation(2)
    cutting.enable_padding(length=8)
    cutting.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).encode("a b c a").ids == [1, 2, 3, 1]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    for name in (str(tmp_path), str(tmp_path / "tokenizer.json"), str(tmp_path / "none")):
        with pytest.raises(PoolError, match=r"Cannot load the tokenizer .* give a hub id, or a directory"):
            load_tokenizer(name)
