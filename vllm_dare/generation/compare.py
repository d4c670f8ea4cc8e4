"""The same rows once without drafts, to see what drafts are worth."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError
from vllm_dare.generation.prompts import PromptRow, id_key
from vllm_dare.generation.settings import EngineSettings, SamplingSettings

_SOME_ROWS_FAILED = 3

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Agreement:
    """How alike two runs' texts are; rows that failed in either run are left out.

    Attributes:
        rows: rows compared.
        same_texts: the share of rows whose token ids are identical.
        same_leading_tokens: the tokens before the first difference, as a share of the longer text, over all.
    """

    rows: int
    same_texts: float
    same_leading_tokens: float


@dataclass(frozen=True)
class Baseline:
    """A finished run of plain vLLM: its figures (see `Figures.as_dict`) and rows, with token ids."""

    figures: Mapping[str, Any]
    rows: Rows


def run_baseline(rows: Iterable[PromptRow], engine: EngineSettings, sampling: SamplingSettings) -> Baseline:
    """Generate ``rows`` with plain vLLM in a process of its own, with the same settings.

    Raises:
        DareError: the run failed; its messages are shown on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-dare-baseline-") as folder:
        prompts, output, figures = (
            Path(folder) / name for name in ("prompts.jsonl", "out.jsonl", "out.json")
        )
        prompts.write_text("".join(json.dumps(_record(row)) + "\n" for row in rows), encoding="utf-8")
        command = [sys.executable, "-m", "vllm_dare.cli.app", "generate", "--no-drafts", "--token-ids"]
        command += ["--prompts", str(prompts), "--output", str(output), "--json", str(figures)]
        command += _options(engine, sampling)
        # in a file rather than a pipe, which engine processes that linger would keep open
        with (Path(folder) / "log").open("w+", encoding="utf-8", errors="replace") as log:
            # and in a session of its own: on Ctrl-C this process ends the whole tree, nobody else
            code = subprocess.run(
                command, stdout=log, stderr=log, check=False, start_new_session=True
            ).returncode
            if code not in (0, _SOME_ROWS_FAILED):
                log.seek(0)
                sys.stderr.write(log.read())
                raise DareError(
                    "The baseline run failed (its messages are above); mend it, or leave out "
                    "--compare-baseline."
                )
        return Baseline(json.loads(figures.read_text(encoding="utf-8"))["figures"], read_rows(output))


def read_rows(path: Path) -> Rows:
    """All rows of a finished output file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def agreement(first: Rows, second: Rows) -> Agreement:
    """Compare the token ids of two runs over the same prompts."""
    others = {id_key(row["id"]): row["token_ids"] for row in second if row["finish_reason"] != "error"}
    pairs = [
        (row["token_ids"], others[id_key(row["id"])])
        for row in first
        if row["finish_reason"] != "error" and id_key(row["id"]) in others
    ]
    same = sum(a == b for a, b in pairs)
    leading = sum(_common_prefix(a, b) for a, b in pairs)
    longest = sum(max(len(a), len(b)) for a, b in pairs)
    return Agreement(len(pairs), same / max(len(pairs), 1), leading / max(longest, 1))


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _record(row: PromptRow) -> dict[str, Any]:
    prompt = {"prompt": row.prompt} if isinstance(row.prompt, str) else {"messages": row.prompt}
    return {"id": row.id, **prompt, **row.metadata, "max_tokens": row.max_tokens}


def _options(engine: EngineSettings, sampling: SamplingSettings) -> list[str]:
    named = {
        "--model": engine.model,
        "--max-num-seqs": engine.max_num_seqs,
        "--max-model-len": engine.max_model_len,
        "--dtype": engine.dtype,
        "--engine-args": json.dumps(dict(engine.engine_args)),
        "--max-tokens": sampling.max_tokens,
        "--temperature": sampling.temperature,
        "--top-p": sampling.top_p,
        "--top-k": sampling.top_k,
        # No seed: with drafts the same seed meets other random numbers, so texts would differ all the same,
        # and vLLM's CPU engine without our patches dies of a seeded prompt that is prefilled in chunks.
    }
    return [text for name, value in named.items() if value is not None for text in (name, str(value))]
