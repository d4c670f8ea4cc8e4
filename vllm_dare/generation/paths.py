"""Look at a run's files before anything is written or started."""

import os
from collections.abc import Iterable
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
        check_report_file("--json", summary, (prompts, *written_files(output)))


def check_report_file(option: str, path: Path, others: Iterable[Path]) -> None:
    """Refuse a file that could not be written when the run is over.

    Args:
        option: how the command line calls it, for the message.
        path: the file.
        others: the run's other files, which it must not be.

    Raises:
        DareError: see the message.
    """
    for other in others:
        if _is_same(path, other):
            raise DareError(f"{option} {path} is the file {other}, too; choose another one.")
    if path.is_dir():
        raise DareError(f"{option} {path} is a directory; name a file.")
    if not path.parent.is_dir():
        raise DareError(f"{option} {path} cannot be written: there is no directory {path.parent}.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DareError(f"{option} {path} cannot be written: permission denied.")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.resolve() == other.resolve()
