"""A run's files are told apart before anything is written."""

from pathlib import Path

import pytest

from vllm_dare.errors import DareError
from vllm_dare.generation.paths import check_paths


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    return path


@pytest.mark.parametrize("output", ["prompts.jsonl", "link.jsonl", "hard.jsonl", "../{folder}/prompts.jsonl"])
def test_the_prompts_are_not_overwritten(prompts: Path, output: str) -> None:
    with pytest.raises(DareError, match="which this run would overwrite"):
        check_paths(prompts, prompts.parent / output.format(folder=prompts.parent.name), None)


def test_prompts_that_are_another_outputs_part_file(tmp_path: Path) -> None:
    with pytest.raises(DareError, match="which this run would overwrite"):
        check_paths(tmp_path / "out.jsonl.part", tmp_path / "out.jsonl", None)


@pytest.mark.parametrize("name", ["prompts.jsonl", "link.jsonl", "out.jsonl", "out.jsonl.part"])
def test_the_summary_is_a_file_of_its_own(prompts: Path, name: str) -> None:
    with pytest.raises(DareError, match=r"--json .* too; choose another one"):
        check_paths(prompts, prompts.parent / "out.jsonl", prompts.parent / name)


def test_three_files_are_fine(prompts: Path) -> None:
    check_paths(prompts, prompts.parent / "new" / "out.jsonl", prompts.parent / "summary.json")
