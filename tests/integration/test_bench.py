"""`vllm-dare bench` on real engines: two arms, one cell, every file that it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import DEMO

SECONDS = 300


def test_two_arms_side_by_side(demo_model: str, demo_pool: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_dare.cli.app", "bench", "--model", demo_model]
    command += ["--prompts", str(DEMO / "prompts.jsonl"), "--pool", str(demo_pool), "--limit", "2"]
    command += ["--arms", "none,strict", "--concurrency", "1", "--temperature", "0", "--repeats", "1"]
    command += ["--max-tokens", "16", "--max-model-len", "512", "--dtype", "float32"]
    command += ["--engine-args", '{"enforce_eager": true}', "--json", str(tmp_path / "out.json")]
    command += ["--plots", str(tmp_path / "plots"), "--markdown", str(tmp_path / "report.md")]
    done = subprocess.run(
        command,
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["status"], result["failures"]) == ("complete", {})
    none, strict = result["summary"]
    assert none["tokens_per_step"]["median"] == 1.0
    assert none["look_up_share"] is None and none["drafted_per_step"]["median"] == 0.0
    assert strict["tokens_per_step"]["median"] > 1.0
    assert strict["same_texts"]["median"] == 1.0
    assert strict["speed_up"]["median"] > 0
    assert 0 < strict["look_up_share"]["median"] < 1
    assert strict["mean_tokens"]["median"] == 16.0
    assert strict["peak_bytes"] > 2**28
    assert sorted(os.listdir(tmp_path / "plots")) == ["speedup.png", "tokens_per_step.png"]
    assert "| 1 | strict |" in (tmp_path / "report.md").read_text()
    assert "strict" in done.stdout
