"""The command line: cheap to start, clear when something is wrong."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vllm_dare import __version__
from vllm_dare.generation.fingerprint import Fingerprint
from vllm_dare.generation.output import OutputFile
from vllm_dare.generation.prompts import PromptRow
from vllm_dare.generation.settings import EngineSettings, SamplingSettings, text_settings

HEAVY = ("torch", "vllm", "numba", "transformers", "pyarrow", "numpy")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_dare.cli.app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_version() -> None:
    assert _run("--version").stdout == f"vllm-dare {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['vllm-dare', '--help']\n"
        "from vllm_dare.cli.app import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "generate" in result.stdout and "doctor" in result.stdout and "pool" in result.stdout
    assert result.stderr.strip() == "[]"


def _generate(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "p.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
    required = ("--model", "m", "--prompts", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "o.jsonl"))
    return _run("generate", *required, *options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--prompts", "nowhere.jsonl"), "There is no prompt file nowhere.jsonl."),
        (("--engine-args", "[]"), "--engine-args must be a JSON object"),
        (("--engine-args", '{"model": "x"}'), "--engine-args may not contain 'model'"),
        (("--output", "out.parquet"), "the output is plain JSON lines"),
        (("--output", "."), "--output . is a directory"),
        (("--json", "nowhere/summary.json"), "there is no directory nowhere"),
        (("--json", "."), "--json . is a directory"),
        (("--json", "/proc/x"), "--json /proc/x cannot be written: no file can be made in /proc"),
        (("--model", "/nope"), "There is no directory /nope."),
        (("--pool", "nowhere"), "nowhere"),
    ],
)
def test_a_users_error_is_one_sentence(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    result = _generate(tmp_path, *options)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "o.jsonl.part").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--workers", "2"), "--workers needs --engine ray."),
        (("--partition-rows", "5"), "--partition-rows needs --engine ray."),
        (("--engine", "ray", "--compare-baseline", "5"), "--compare-baseline needs --engine local."),
    ],
)
def test_options_of_the_other_engine_are_refused(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    result = _generate(tmp_path, *options)
    assert result.returncode == 2 and sentence in result.stderr


def test_on_ray_the_output_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text("")
    result = _generate(tmp_path, "--engine", "ray")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "o.jsonl is a file; with --engine ray, name a directory." in result.stderr


def _finish(tmp_path: Path, row: dict[str, object]) -> None:
    """Leave the output of an earlier run of `_generate`."""
    fingerprint = Fingerprint()
    list(fingerprint.watch(iter([PromptRow(1, "a", {})])))
    settings = text_settings(EngineSettings("m"), SamplingSettings(), token_ids=False)
    file = OutputFile.open(tmp_path / "o.jsonl", settings, fingerprint, overwrite=True)
    file.append(row)
    file.finish()


def test_a_complete_output_is_said_to_be_complete(tmp_path: Path) -> None:
    _finish(tmp_path, {"id": 1, "text": "b", "finish_reason": "stop"})
    result = _generate(tmp_path, "--json", str(tmp_path / "summary.json"))
    assert result.returncode == 0
    assert "is complete with 1 rows; use --overwrite" in result.stdout.replace("\n", " ")
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "untouched"


def test_failed_rows_of_a_complete_output_are_not_forgotten(tmp_path: Path) -> None:
    _finish(tmp_path, {"id": 1, "text": "", "finish_reason": "error"})
    result = _generate(tmp_path)
    assert result.returncode == 3
    assert "1 of 1 rows failed" in result.stderr
    assert "--retry-failed generates them again" in result.stderr


def test_an_interrupt_while_the_command_is_imported_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["vllm-dare"].partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"  # as pip's script does
    for command in (["-m", "vllm_dare"], ["-c", code]):
        result = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
