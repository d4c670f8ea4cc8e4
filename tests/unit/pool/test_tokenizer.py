import os
import shutil
import subprocess
import sys
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


# In a process of its own: the hub's library reads its environment when it is imported.
_LOAD = """
import sys
from vllm_dare.errors import PoolError
from vllm_dare.pool.tokenizer import load_tokenizer
try:
    print(load_tokenizer("some/model").get_vocab_size())
except PoolError as error:
    print(error)
"""
NOBODY_LISTENS = {"HF_ENDPOINT": "http://127.0.0.1:9"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def load(cache: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    unset = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    environment = kept | {"HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"} | environment
    command = [sys.executable, "-c", _LOAD]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [(NOBODY_LISTENS, "the model hub cannot be reached"), (OFFLINE, "HF_HUB_OFFLINE is set")],
)
def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    result = load(tmp_path, environment)
    assert reason in result.stdout and "give a hub id, or a directory" in result.stdout
    assert "Retrying" not in result.stderr


@pytest.mark.parametrize("environment", [NOBODY_LISTENS, OFFLINE])
def test_what_is_in_the_hubs_cache_needs_no_hub(
    tmp_path: Path, tokenizer: str, environment: dict[str, str]
) -> None:
    model = tmp_path / "hub" / "models--some--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tokenizer, model / "snapshots" / ("0" * 40))
    assert load(tmp_path, environment).stdout == "10\n"


def test_a_path_to_nothing_is_not_asked_of_the_hub() -> None:
    with pytest.raises(PoolError, match="there is no directory"):
        load_tokenizer("./nothing")
