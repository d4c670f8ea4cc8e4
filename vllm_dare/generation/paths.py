"""Look at a run's files before anything is written or started."""

import os
from pathlib import Path

from vllm_dare.errors import DareError
from vllm_dare.generation.output import written_files


def check_paths(prompts: Path, output: Path, summary: Path | None) -> None:
    """Refuse a run that would overwrite its own prompts, or could not write what it is asked for.

    Raises:
        DareError: two of the files are one, or one cannot be written.
    """
    if output.is_dir():
        raise DareError(f"--output {output} is a directory; name a file.")
    if output.suffix in (".gz", ".parquet"):
        raise DareError(
            f"--output {output} cannot be written: the output is plain JSON lines, name it .jsonl."
        )
    for written in written_files(output):
        if _is_same(prompts, written):
            raise DareError(
                f"--prompts {prompts} is the file {written}, which this run would overwrite; choose another "
                "--output."
            )
    if summary is not None:
        _check_summary(summary, prompts, output)


def _check_summary(summary: Path, prompts: Path, output: Path) -> None:
    for other in (prompts, *written_files(output)):
        if _is_same(summary, other):
            raise DareError(f"--json {summary} is the file {other}, too; choose another one.")
    if summary.is_dir():
        raise DareError(f"--json {summary} is a directory; name a file.")
    if not summary.parent.is_dir():
        raise DareError(f"--json {summary} cannot be written: there is no directory {summary.parent}.")
    if not os.access(summary if summary.exists() else summary.parent, os.W_OK):
        raise DareError(f"--json {summary} cannot be written: permission denied.")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.resolve() == other.resolve()
