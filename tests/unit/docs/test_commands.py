"""Every command that the documentation shows exists, with every option; those on the demo's data are run."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from vllm_dare.cli.app import app

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What the tour shows, but for what starts an engine: that is for the integration tests.
RUN = (
    "pool build examples/demo/documents.jsonl --tokenizer examples/demo/model --output out/tour/pool",
    "pool info out/tour/pool",
    "replay examples/demo/documents.jsonl --order --tokenizer examples/demo/model --limit 30",
    "group users examples/frameworks/interactions.csv --min-weight 4 --method als --output out/tour/groups",
    "group explain out/tour/groups --history horror-02,horror-05",
)


@dataclass(frozen=True)
class Shown:
    """A `vllm-dare` command on a page, as words."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"[:80]


def commands() -> Iterator[Shown]:
    for page in PAGES:
        for block in FENCE.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("vllm-dare "):
                    words = shlex.split(line, comments=True)
                    yield Shown(str(page.relative_to(ROOT)), tuple(words[1:]))


SHOWN = list(commands())


def check(words: tuple[str, ...]) -> None:
    """Let the command read its words, but not run; "…" and "..." stand for what a page leaves out."""
    command: Any = typer.main.get_command(app)
    name, rest = "vllm-dare", list(words)
    while rest and (children := getattr(command, "commands", {})):
        assert rest[0] in children, f"{name} has no command {rest[0]}"
        name, command = rest[0], children[rest.pop(0)]
    if {"…", "..."} & set(rest):
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known
        return
    command.make_context(name, rest)


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_it_exists(shown: Shown) -> None:
    check(shown.words)


@pytest.mark.parametrize(
    "words",
    ["pool bild x", "pool info", "generate --modell x", "pool build … --overwriten", "replay a --draft"],
)
def test_a_wrong_one_would_be_noticed(words: str) -> None:
    with pytest.raises(Exception, match=r"no command|Missing|No such option|assert|requires an argument"):
        check(tuple(words.split()))


def test_pages_show_commands() -> None:
    assert len(SHOWN) > 20
    assert {shown.page for shown in SHOWN} >= {"README.md", "docs/index.md", "docs/operations.md"}


def test_what_is_run_is_shown() -> None:
    assert set(RUN) <= {" ".join(shown.words) for shown in SHOWN}


def test_those_on_the_demos_data_run(tmp_path: Path) -> None:
    pytest.importorskip("implicit", reason="`group users` needs the extra groups")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for words in RUN:
        done = subprocess.run(
            [sys.executable, "-m", "vllm_dare.cli.app", *words.split()],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        assert done.stdout
