import subprocess
import sys


def test_opening_and_building_pools_needs_no_engine() -> None:
    code = (
        "import sys, vllm_dare.pool.pool, vllm_dare.pool.build, vllm_dare.pool.merge, vllm_dare.cli.pool\n"
        "print([m for m in ('torch', 'vllm', 'numba', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
