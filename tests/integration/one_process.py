"""Several vLLM engines one after the other in one process, which saves half a minute of start-up each.

Run as ``python -m tests.integration.one_process JOBS RESULTS``, two JSON files. A process of its own can be
without the plugin altogether: set ``VLLM_PLUGINS`` to nothing.
"""

import gc
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from .conftest import SPECULATION, spec_counters

ROOT = Path(__file__).parents[2]


def run_engines(jobs: list[dict[str, Any]], folder: Path, plugins: str | None = None) -> list[dict[str, Any]]:
    """Run the jobs in a new process.

    Args:
        jobs: "model", "prompts" (token ids), "params" (of `SamplingParams`), and for DARE "dare" (settings)
            and "extra_args" (one for each prompt); "max_num_seqs", by default all at a time.
        folder: where to exchange files.
        plugins: the plugins that vLLM may load; None for all.

    Returns:
        For each job "outputs" (token ids) and "counters"; or "error", if the engine failed.
    """
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    subprocess.run(
        [sys.executable, "-m", __name__, str(folder / "jobs.json"), str(folder / "results.json")],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    return json.loads((folder / "results.json").read_text())


def _run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {}
    if "dare" in job:
        options = {"speculative_config": SPECULATION, "additional_config": {"dare": job["dare"]}}
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    extra_args = job.get("extra_args", [None] * len(prompts))
    engine = LLM(
        job["model"],
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=job.get("max_num_seqs", len(prompts)),
        disable_log_stats=False,
        **options,
    )
    try:
        params = [SamplingParams(**job["params"], extra_args=extra) for extra in extra_args]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        return {
            "outputs": [list(output.outputs[0].token_ids) for output in outputs],
            "counters": spec_counters(engine),
        }
    finally:
        engine.llm_engine.engine_core.shutdown()


def _run_or_say_why(job: dict[str, Any]) -> dict[str, Any]:
    from vllm.distributed import cleanup_dist_env_and_memory

    try:
        return _run(job)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        gc.collect()
        cleanup_dist_env_and_memory()


def _register_kernels_once() -> None:
    """vLLM registers its CPU kernels for every engine anew, and that fails once numba has been imported."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = lambda *_: None


def main() -> None:
    _register_kernels_once()
    jobs, results = map(Path, sys.argv[1:])
    results.write_text(json.dumps([_run_or_say_why(job) for job in json.loads(jobs.read_text())]))


if __name__ == "__main__":
    main()
