"""A few thousand made-up requests, in children of another process; `tests/fuzz/requests.py` runs more."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

ROOT = Path(__file__).parents[2]


def test_made_up_requests_are_served_or_refused() -> None:
    command = [sys.executable, "-m", "tests.fuzz.requests", "--cases", "1500", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("1,500 cases", "accepted", "refused: dare_never_relax", "0  faults"):
        assert line in done.stdout
