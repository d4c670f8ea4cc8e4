"""`make demo`: the demo prompts with plain vLLM, with strict and with relaxed drafts, side by side.

Everything it does is a `vllm-dare` command, which it prints before it runs it.
"""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from vllm_dare.generation.compare import Agreement, agreement, read_rows
from vllm_dare.generation.summary import comparison_table

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("examples/demo")
OUT = Path("out/demo")
# a short start (half a minute instead of two), and 1 GiB of KV cache instead of nearly all memory
ENGINE_ARGS = '{"enforce_eager": true, "kv_cache_memory_bytes": 1073741824}'
ARMS = {
    "plain": ["--no-drafts"],
    "strict": ["--pool", f"{OUT}/pool"],
    "relaxed": ["--pool", f"{OUT}/pool", "--verification", "relaxed"],
}


def main() -> None:
    """Build the pool if it is not fresh, run the three arms, compare."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the command's, whose exit status ends this too
    build_pool()
    for name, options in ARMS.items():
        generate(name, options)
    runs = [json.loads((ROOT / OUT / f"{name}.json").read_text())["figures"] for name in ARMS]
    title = f"The same {runs[0]['rows']} documents, engine start excluded; outputs are in {OUT}"
    Console().print(comparison_table(list(ARMS), runs, agreements(), title))


def build_pool() -> None:
    """Index the texts that the model wrote before, unless that has been done since they changed."""
    manifest, documents = ROOT / OUT / "pool" / "manifest.json", ROOT / DEMO / "documents.jsonl"
    if manifest.exists() and manifest.stat().st_mtime > documents.stat().st_mtime:
        return
    run(
        "pool",
        "build",
        str(DEMO / "documents.jsonl"),
        "--tokenizer",
        str(DEMO / "model"),
        "--output",
        str(OUT / "pool"),
        "--overwrite",
    )


def generate(name: str, options: list[str]) -> None:
    """Write every prompt's text."""
    run(
        "generate",
        "--model",
        str(DEMO / "model"),
        "--prompts",
        str(DEMO / "prompts.jsonl"),
        *options,
        "--output",
        f"{OUT}/{name}.jsonl",
        "--json",
        f"{OUT}/{name}.json",
        "--token-ids",
        "--overwrite",
        "--max-num-seqs",
        "4",
        "--engine-args",
        ENGINE_ARGS,
    )


def run(*arguments: str) -> None:
    """Print a `vllm-dare` command and run it; end with its exit status if it fails."""
    print(f"\n$ {shlex.join(['vllm-dare', *arguments])}", flush=True)
    command = [sys.executable, "-m", "vllm_dare.cli.app", *arguments]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(code)


def agreements() -> list[Agreement]:
    """How the arms with drafts agree with the plain one."""
    plain, *others = (read_rows(ROOT / OUT / f"{name}.jsonl") for name in ARMS)
    return [agreement(plain, rows) for rows in others]


if __name__ == "__main__":
    main()
