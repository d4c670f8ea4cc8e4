"""What a row costs on Ray over plain `vllm-dare generate`, both with one engine on this machine, in turns.

    .venv/bin/python -m tests.benchmarks.ray_overhead --model MODEL --pool POOL --prompts prompts.jsonl

Both arms generate the same rows, `--repeat` times each, one after the other, and must write the same texts.
Reported are the seconds per row without the engine's start, which on Ray go from the first engine's start to
the last report, and the ratio of each pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400, help="prompts are repeated to give so many")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--partition-rows", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="ray-overhead-") as folder, _cluster() as address:
        prompts = _prompts(arguments.prompts, Path(folder) / "prompts.jsonl", arguments.rows)
        command = [sys.executable, "-m", "vllm_dare", "generate", "--model", arguments.model]
        command += ["--pool", str(arguments.pool), "--prompts", str(prompts), "--dtype", "float32"]
        command += ["--max-tokens", str(arguments.max_tokens), "--max-num-seqs", str(arguments.max_num_seqs)]
        command += ["--engine-args", '{"enforce_eager": true, "kv_cache_memory_bytes": 500000000}']
        on_ray = ["--engine", "ray", "--ray-address", address, "--workers", "1"]
        on_ray += ["--partition-rows", str(arguments.partition_rows)]
        _compare(command, on_ray, Path(folder), arguments.repeat)


def _compare(command: list[str], on_ray: list[str], folder: Path, repeat: int) -> None:
    ratios = []
    for number in range(repeat):
        plain, texts = _run(command, folder / f"plain{number}.jsonl")
        ray, ray_texts = _run([*command, *on_ray], folder / f"ray{number}")
        assert texts == ray_texts, "the arms wrote different texts"
        ratios.append(ray / plain)
        print(
            f"plain {1e3 * plain:.1f} ms a row, Ray {1e3 * ray:.1f} ms a row, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(
        f"ratio, median of {repeat}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def _run(command: list[str], output: Path) -> tuple[float, dict[str, str]]:
    """The seconds a row took, and the texts."""
    figures = output.with_suffix(".json")
    subprocess.run(
        [*command, "--output", str(output), "--json", str(figures)], check=True, capture_output=True
    )
    found = json.loads(figures.read_text())["figures"]
    files = sorted(output.glob("part-*.jsonl")) if output.is_dir() else [output]
    rows: list[dict[str, Any]] = [
        json.loads(line) for file in files for line in file.read_text().splitlines()
    ]
    return found["seconds"] / found["rows"], {row["id"]: row["text"] for row in rows}


def _prompts(source: Path, target: Path, number: int) -> Path:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    repeated = (
        rows[place % len(rows)] | {"id": f"{place // len(rows)}-{place % len(rows)}"}
        for place in range(number)
    )
    target.write_text("".join(json.dumps(row) + "\n" for row in repeated))
    return target


@contextmanager
def _cluster() -> Iterator[str]:
    os.environ.update(RAY_worker_niceness="0")  # as the plain arm has it
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"object_store_memory": 10**8, "include_dashboard": False}
    )
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
