"""A few thousand made-up pools, in children of another process; `tests/fuzz/pool_files.py` runs millions."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_made_up_pools_are_refused_or_harmless(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.pool_files", "--cases", "1500", "--seed", "7", "--fast"]
    done = subprocess.run(
        [*command, "--failures", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,500 cases" in done.stdout
    for outcome in ("accepted, checksums compared", "refused: PoolError: the lengths of its arrays disagree"):
        assert outcome in done.stdout
