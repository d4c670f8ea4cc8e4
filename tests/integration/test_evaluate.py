"""`vllm-dare evaluate --sweep` on real engines: generated, scored, compared, and not generated twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import DEMO

SECONDS = 300


def test_a_sweep_of_two_settings(demo_model: str, demo_pool: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "values.tsv"
    vocabulary.write_text("Comedy\nDrama\nMystery\n", encoding="utf-8")
    command = [sys.executable, "-m", "vllm_dare.cli.app", "evaluate", "--sweep", "--model", demo_model]
    command += ["--prompts", str(DEMO / "prompts.jsonl"), "--pool", str(demo_pool), "--limit", "4"]
    command += ["--settings", "strict,fast", "--output", str(tmp_path / "texts"), "--concurrency", "2"]
    command += ["--max-tokens", "24", "--max-model-len", "512", "--dtype", "float32"]
    command += ["--engine-args", '{"enforce_eager": true}', "--vocabulary", str(vocabulary)]
    command += ["--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots")]
    for attempt in (1, 2):
        done = subprocess.run(
            command,
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert ("with drafts" in done.stderr) == (attempt == 1)
    result = json.loads((tmp_path / "out.json").read_text())
    plain, strict, fast = result["variants"]
    assert plain["speed"]["tokens_per_step"] == 1.0
    assert strict["speed"]["tokens_per_step"] > 1.0
    assert strict["text"]["rouge_l"]["value"] == 1.0, "greedy in float32: the same texts"
    assert strict["text"]["log_probability"]["difference"]["value"] == 0.0
    assert plain["text"]["log_probability"]["value"] < 0
    assert strict["verdict"]["word"] == "holds"
    assert fast["speed"]["seconds_per_document"] > 0
    assert (tmp_path / "plots" / "speed_agreement.png").exists()
