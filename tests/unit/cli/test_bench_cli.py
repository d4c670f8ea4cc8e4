"""`vllm-dare bench` says what is wrong in one sentence, before any engine starts."""

import subprocess
import sys
from pathlib import Path

import pytest


def _bench(tmp_path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "p.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
    command = [sys.executable, "-m", "vllm_dare.cli.app", "bench", "--model", "m", "--prompts", "p.jsonl"]
    command += ["--concurrency", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--prompts", "nowhere.jsonl"), "There is no prompt file nowhere.jsonl."),
        (("--model", "/nope"), "There is no directory /nope."),
        (("--pool", "nowhere"), "nowhere is not a pool directory"),
        (("--arms", "none,magic"), "There is no arm 'magic'"),
        (("--draft", "129"), "vLLM verifies between 1 and 128"),
        (("--draft", "many"), "--draft takes whole numbers from 1"),
        (("--concurrency", "0,1"), "--concurrency takes whole numbers from 1"),
        (("--concurrency", "2"), "--concurrency 2 needs as many prompts at least, but there are 1"),
        (("--temperature", "-1"), "--temperature takes numbers from 0"),
        (("--temperature", "nan"), "--temperature takes numbers from 0"),
        (("--json", "nowhere/out.json"), "there is no directory nowhere"),
        (("--json", "p.jsonl"), "--json p.jsonl is the file p.jsonl, too"),
        (("--json", "o", "--markdown", "o"), "--markdown o is the file o, too"),
        (("--plots", "p.jsonl"), "--plots p.jsonl cannot be a directory"),
        (("--plots", "p.jsonl/plots"), "p.jsonl is a file; name another one"),
        (
            ("--markdown", "/proc/bench.md"),
            "--markdown /proc/bench.md cannot be written: no file can be made",
        ),
        (("--engine-args", '{"max_num_seqs": 4}'), "may not contain 'max_num_seqs'"),
        (("--engine-args", "4"), "--engine-args must be a JSON object"),
    ],
)
def test_a_users_error_is_one_sentence(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    result = _bench(tmp_path, *options)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
