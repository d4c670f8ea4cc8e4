"""Generate with drafts on a Ray cluster, in a program of your own, as `vllm-dare generate --engine ray` does.

    pip install 'vllm-dare[ray]'
    python examples/ray_batch.py

Run `make demo` once before: it builds the pool that this example reads. Kill the program or a worker, and run
it again: it goes on with the rows that are missing (docs/ray.md).
"""

from pathlib import Path

from rich.console import Console

from vllm_dare.generation.job import Job
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.generation.summary import outcome_table
from vllm_dare.scale.job import RaySettings, run_ray_job

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples/demo"


def main() -> None:
    engine = EngineSettings(
        model=str(DEMO / "model"),
        pool=ROOT / "out/demo/pool",
        # A quick start and a small cache for an example; leave both out in production.
        engine_args={"enforce_eager": True, "kv_cache_memory_bytes": 2**30},
    )
    job = Job(
        prompts=DEMO / "prompts.jsonl",  # or a directory of files; each row names its group
        output=ROOT / "out/ray",  # a directory: a file for each partition
        engine=engine,
        sampling=SamplingSettings(max_tokens=512),
    )
    console = Console()
    # The cluster that RAY_ADDRESS names, or that runs on this machine; else this machine alone.
    outcome = run_ray_job(job, RaySettings(partition_rows=25), console)
    console.print(outcome_table(outcome))


if __name__ == "__main__":
    main()
