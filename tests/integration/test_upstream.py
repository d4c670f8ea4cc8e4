"""vLLM's own tests of its rejection sampler, unchanged, with ours in its place.

They are not part of vLLM's wheel: set VLLM_SOURCE to the unpacked source distribution of the installed
version (`vllm-0.32.0.tar.gz` on PyPI) to run them.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = os.environ.get("VLLM_SOURCE", "")
TESTS = Path("tests/v1/sample/test_rejection_sampler.py")
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (Path(SOURCE) / TESTS).is_file(), reason="VLLM_SOURCE does not name vLLM's source distribution"
)


def outcomes(mode: str) -> dict[str, str]:
    """Test name to PASSED, FAILED or SKIPPED."""
    # The project's own `tests` package stands in the way of vLLM's, whose name is the same.
    code = f"""
import sys, pytest
sys.path.insert(0, {str(ROOT)!r})
from tests.integration import upstream_sampler
for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
    del sys.modules[name]
sys.path[:] = [".", *(path for path in sys.path if path != {str(ROOT)!r})]
options = ["-rA", "-q", "-p", "no:cacheprovider", "--noconftest", "--rootdir=.", {str(TESTS)!r}]
sys.exit(pytest.main(options, plugins=[upstream_sampler]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SOURCE,
        env={**os.environ, "DARE_SAMPLER": mode},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+)", run.stdout, re.MULTILINE)
    assert found, run.stdout + run.stderr
    return {name: outcome for outcome, name in found}


@cache
def native_outcomes() -> dict[str, str]:
    return outcomes("native")


@pytest.mark.parametrize("mode", ["strict", "spent"])
def test_upstreams_tests_of_the_rejection_sampler(mode: str) -> None:
    native, ours = native_outcomes(), outcomes(mode)
    assert ours == native
    assert sum(outcome == "PASSED" for outcome in ours.values()) > 20
