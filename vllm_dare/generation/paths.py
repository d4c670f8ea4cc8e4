"""Look at a run's files before anything is written or started."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_dare.errors import DareError
from vllm_dare.generation.output import written_files
from vllm_dare.generation.partition_output import is_partitioned_output
from vllm_dare.pool.files import check_writable


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


def check_folders(prompts: Path, output: Path, summary: Path | None) -> None:
    """`check_paths` for a run that writes a directory of parts.

    Raises:
        DareError: the output is a file, holds the prompts or something else, or cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise DareError(f"--output {output} is a file; with --engine ray, name a directory.")
    if output.is_dir() and any(output.iterdir()) and not is_partitioned_output(output):
        raise DareError(f"--output {output} holds something else; name another directory.")
    if _is_within(prompts, output) or _is_within(output, prompts):
        raise DareError(
            f"--prompts {prompts} and --output {output} are in one another; choose another --output."
        )
    check_report_folder("--output", output)
    if summary is not None:
        check_report_file("--json", summary, (prompts,))


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
    if path.exists() and not path.is_file():
        raise DareError(f"{option} {path} is not a file that can be replaced; name another one.")
    if not path.parent.is_dir():
        raise DareError(f"{option} {path} cannot be written: there is no directory {path.parent}.")
    _check_folder(option, path, path.parent)


@contextmanager
def report_errors(option: str, path: Path) -> Iterator[None]:
    """Say which report could not be written, should the disk be full by the time the run is over.

    Raises:
        DareError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DareError(
            f"{option} {path} could not be written ({error.strerror or error}); what was found is above."
        ) from None


def check_report_folder(option: str, path: Path) -> None:
    """Refuse a folder that could not be made, or written into, when the run is over.

    Raises:
        DareError: see the message.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise DareError(f"{option} {path} cannot be a directory: {existing} is a file; name another one.")
    _check_folder(option, path, existing)


def _check_folder(option: str, path: Path, folder: Path) -> None:
    try:
        check_writable(folder)
    except OSError as error:
        raise DareError(
            f"{option} {path} cannot be written: no file can be made in {folder} ({error.strerror}); choose "
            "another place."
        ) from None


def _is_within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.resolve() == other.resolve()
