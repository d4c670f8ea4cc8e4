"""`vllm-dare generate` on a real engine: no interruption loses, doubles or changes a row."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.engine.orphans import descendants

ROWS = 48
START_SECONDS = 240


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama, its tokenizer and prompts; one prompt is too long."""
    folder = tmp_path_factory.mktemp("generate")
    _save_model(folder / "model")
    rows: list[dict[str, Any]] = [
        {"id": f"u{number}", "prompt": f"word{number} word{number * 7 % 90} likes", "group": "users/1"}
        for number in range(ROWS)
    ]
    rows[5]["prompt"] = "word1 " * 600
    rows[6] = {"id": 6, "messages": [{"role": "user", "content": "word3 word4"}], "max_tokens": 4}
    rows[7]["dare_nonsense"] = 1
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(work: Path) -> dict[Any, dict[str, Any]]:
    """The rows of a run without interruption, by id."""
    process = _start(work, "whole.jsonl", "--json", str(work / "whole.json"))
    assert process.wait(START_SECONDS) == 3, "two rows are meant to fail"
    return _rows(work / "whole.jsonl")


def test_rows_that_cannot_be_generated_are_errors(
    work: Path, uninterrupted: dict[Any, dict[str, Any]]
) -> None:
    failed = {
        row_id: row["error"] for row_id, row in uninterrupted.items() if row["finish_reason"] == "error"
    }
    assert failed.keys() == {"u5", "u7"}
    assert "512" in failed["u5"] and "dare_nonsense" in failed["u7"]
    summary = json.loads((work / "whole.json").read_text())
    assert (summary["total"], summary["failed"]) == (ROWS, 2)


def test_a_chat_row_with_its_own_limit(uninterrupted: dict[Any, dict[str, Any]]) -> None:
    assert uninterrupted[6]["completion_tokens"] == 4


def test_figures_come_from_the_engine(work: Path, uninterrupted: dict[Any, dict[str, Any]]) -> None:
    figures = json.loads((work / "whole.json").read_text())["figures"]
    assert figures["completion_tokens"] == sum(row["completion_tokens"] for row in uninterrupted.values())
    assert figures["tokens_per_step"] == 1.0


def test_kill_then_interrupt_then_finish(work: Path, uninterrupted: dict[Any, dict[str, Any]]) -> None:
    part = work / "broken.jsonl.part"
    process = _start(work, "broken.jsonl")
    engine = _wait_for_rows(process, part, 3)
    process.kill()
    process.wait()
    _wait_until_gone(engine)
    with part.open("ab") as file:
        file.write(b'{"id": "u9", "te')  # what a crash in the middle of a write leaves behind

    finished = part.read_bytes().count(b"\n")
    process = _start(work, "broken.jsonl")
    _wait_for_rows(process, part, finished + 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not (work / "broken.jsonl").exists()

    assert _start(work, "broken.jsonl").wait(START_SECONDS) == 3
    assert _rows(work / "broken.jsonl") == uninterrupted
    assert not part.exists()


def test_a_killed_engine_ends_the_run_and_its_rows_stay(work: Path, tmp_path: Path) -> None:
    part = work / "engine.jsonl.part"
    with (tmp_path / "errors").open("w+") as errors:
        process = _start(work, "engine.jsonl", stderr=errors)
        _wait_for_rows(process, part, 3)
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
        finished = part.read_bytes().count(b"\n")
        assert process.wait(30) == 1
        errors.seek(0)
        assert "The vLLM engine stopped" in errors.read()
    assert finished <= part.read_bytes().count(b"\n") < ROWS


def _start(work: Path, output: str, *options: str, stderr: Any = None) -> "subprocess.Popen[bytes]":
    """Start a run that is slow enough to be interrupted: two rows at a time, without drafts."""
    command = [sys.executable, "-m", "vllm_dare.cli.app", "generate", "--no-drafts"]
    command += ["--model", str(work / "model"), "--prompts", str(work / "prompts.jsonl")]
    command += ["--output", str(work / output), "--max-tokens", "400", "--max-num-seqs", "2"]
    command += ["--dtype", "float32", "--engine-args", '{"enforce_eager": true}', *options]
    return subprocess.Popen(command, env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}, stderr=stderr)


def _rows(path: Path) -> dict[Any, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == ROWS
    found = {row["id"]: row for row in rows}
    assert len(found) == ROWS
    return found


def _wait_for_rows(process: "subprocess.Popen[bytes]", part: Path, count: int) -> list[int]:
    """Wait until ``count`` rows are written; returns the processes of the engine."""
    deadline = time.monotonic() + START_SECONDS
    while not part.exists() or part.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "the run ended too early to be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return _descendants(process.pid)


def _descendants(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listing.splitlines())
    found: list[int] = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "the killed run has left its engine behind"
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _save_model(folder: Path) -> None:
    """A two-layer Llama with random weights, made in a process of its own to keep torch out of this one."""
    subprocess.run([sys.executable, "-c", _MAKE_MODEL, str(folder)], check=True)


_MAKE_MODEL = """
import sys
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
words = ["<unk>", "</s>", "likes", *(f"word{number}" for number in range(125))]
vocabulary = {word: number for number, word in enumerate(words)}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
fast.save_pretrained(sys.argv[1])
config = LlamaConfig(
    vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=512, eos_token_id=1, bos_token_id=None,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
"""
