"""The static check of vLLM's names, on small trees of source text that stand for vLLM."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.compatibility.check import Finding, check, compare
from tests.compatibility.ledger import Seam, calls, exists, has, matches, says, takes
from tests.compatibility.source import Source, open_source

ROOT = Path(__file__).resolve().parents[3]

BEFORE = {
    "vllm/__init__.py": """
        from .version import __version__
        TABLE = {"Engine": ".engine:Engine"}
    """,
    "vllm/version.py": """
        try:
            from ._version import __version__
        except ImportError:
            __version__ = "dev"
    """,
    "vllm/base.py": """
        class Base:
            field: int = 0
            def __init__(self):
                self.early, self.late = 1, 2
        class Runner(Base[int]):
            limit = 3
            @property
            def size(self): ...
            def step(self, a, b, *rest, c=None, **options):
                self.drawn = helper(a, key=b)
        def helper(*args, **kwargs):
            return "group.name"
    """,
    "vllm/engine/__init__.py": """
        from vllm.base import Runner as Engine
        if True:
            from ..base import helper
    """,
}

SEAMS = (
    exists("vllm:__version__", "x", "why"),
    exists("vllm:Engine", "x", "why"),
    exists("vllm:base", "x", "why"),
    takes("vllm.engine:Engine.step", "b c", "x", "why"),
    matches("vllm.base:Runner.step", "self a b c", "x", "why"),
    has("vllm.engine:Engine", "field early late limit size step drawn", "x", "why"),
    calls("vllm.base:Runner.step", "helper(a, key=b)", "x", "why"),
    calls("vllm.base:Runner.step", "helper(...)", "x", "why"),
    calls("vllm.base:Runner.step", "helper(..., key=b)", "x", "why"),
    says("vllm.engine:helper", "group.name", "x", "why"),
    says("vllm.base", "group.name", "x", "why"),
)


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in text.strip("\n").splitlines()))
    return folder


def changed(old: str, new: str) -> dict[str, str]:
    found = {name: text.replace(old, new) for name, text in BEFORE.items()}
    assert found != BEFORE
    return found


def faults(source: Source, seams: tuple[Seam, ...] = SEAMS) -> list[tuple[str, str, str]]:
    return [(found.name, found.status, found.fault) for found in check(source, seams) if found.fault]


def test_names_are_found_through_imports_tables_and_bases(tmp_path: Path) -> None:
    findings = check(open_source(str(tree(tmp_path, BEFORE))), SEAMS)
    assert [found.fault for found in findings if found.fault] == []
    places = {found.name: found.place for found in findings}
    assert places["vllm:__version__"] == "vllm/version.py:4"
    assert places["vllm:Engine"] == "vllm/base.py:5"
    assert places["vllm.engine:Engine.late"] == "vllm/base.py:4"
    assert places["vllm.engine:Engine.drawn"] == "vllm/base.py:10"
    assert places["vllm.engine:helper says group.name"] == "vllm/base.py:12"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("c=None", "d=None", ("vllm.engine:Engine.step", "changed", "it no longer takes c")),
        (
            "a, b,",
            "b, a,",
            ("vllm.base:Runner.step", "changed", "it takes (self, b, a, c), not (self, a, b, c)"),
        ),
        ("self.early", "self.soon", ("vllm.engine:Engine.early", "changed", "it no longer has early")),
        (
            "key=b",
            "key=a",
            (
                "vllm.base:Runner.step calls helper(a, key=b)",
                "changed",
                "it no longer calls helper(a, key=b)",
            ),
        ),
        ('"group.name"', '"group"', ("vllm.base says group.name", "changed", "it no longer says group.name")),
        ("Runner as Engine", "Runner", ("vllm:Engine", "missing", "vllm:Engine is not there")),
    ],
)
def test_what_upstream_took_away_is_named(
    tmp_path: Path, old: str, new: str, fault: tuple[str, str, str]
) -> None:
    assert fault in faults(open_source(str(tree(tmp_path, changed(old, new)))))


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("limit = 3", "limit = 3", "ok"),
        ("class Base", "import os\nclass Base", "moved"),
        ("c=None", "c=None, d=0", "differs"),
        ("step(self, a, b", "step(self, a, z", "changed"),
        ("def step", "def walk", "missing"),
    ],
)
def test_sources_are_compared(tmp_path: Path, old: str, new: str, status: str) -> None:
    seam = takes("vllm.base:Runner.step", "b c", "x", "why")
    before, now = (
        check(open_source(str(tree(tmp_path / name, files))), [seam])[0]
        for name, files in (("old", BEFORE), ("new", {n: t.replace(old, new) for n, t in BEFORE.items()}))
    )
    assert isinstance(now, Finding)
    assert compare(before, now) == status


def test_wheels_and_source_distributions_are_read_unpacked(tmp_path: Path) -> None:
    folder = tree(tmp_path / "tree", BEFORE)
    wheel, sdist = tmp_path / "vllm-9.9-py3-none-any.whl", tmp_path / "vllm-9.9.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in BEFORE:
            archive.write(folder / name, name)
    with tarfile.open(sdist, "w:gz") as packed:
        packed.add(folder, "vllm-9.9")
    for path in (wheel, sdist):
        source = open_source(str(path))
        assert source.name == "vllm-9.9"
        assert faults(source) == []


def test_the_command_fails_if_anything_that_is_relied_on_is_missing(tmp_path: Path) -> None:
    def run(source: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.compatibility", str(source)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    lacking = run(tree(tmp_path / "lacking", BEFORE))
    assert lacking.returncode == 1
    assert "is not there" in lacking.stdout
    nowhere = run(tmp_path / "nowhere")
    assert nowhere.returncode == 2
    assert "neither 'installed', a wheel" in nowhere.stderr
