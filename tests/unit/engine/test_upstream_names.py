"""Every name of vLLM's that the package relies on is in the ledger, and where the ledger says.

Nothing is imported from vLLM: its source is read. Set VLLM_WHEEL to a wheel, an sdist or a folder of another
version to hold the ledger against that, too.
"""

import ast
import os

import pytest

from tests.compatibility.check import check
from tests.compatibility.ledger import seams
from tests.compatibility.source import SourceError, open_source
from tests.compatibility.usage import HOLDERS, attributes, imports, modules
from vllm_dare.engine.installed import installed_vllm

WHEEL = os.environ.get("VLLM_WHEEL", "")


def faults_of(source: str) -> list[str]:
    findings = check(open_source(source), seams())
    return [f"{finding.name} ({finding.place}): {finding.fault}" for finding in findings if finding.fault]


def used() -> dict[str, set[str]]:
    """What the package uses, and the modules that do; of alternatives the first."""
    found: dict[str, set[str]] = {}
    known = ledgered()
    for module, tree in modules().items():
        for name, _ in imports(tree):
            found.setdefault(name, set()).add(module)
        for names, _ in attributes(module, tree):
            found.setdefault(next((name for name in names if name in known), names[0]), set()).add(module)
    return found


def ledgered() -> dict[str, set[str]]:
    """The names and attributes in the ledger, and the modules that it says use them."""
    found: dict[str, set[str]] = {}
    for seam in seams():
        names = [f"{seam.where}.{part}" for part in seam.parts] if seam.kind == "has" else [seam.where]
        for name in names:
            found.setdefault(name, set()).update(seam.by)
    return found


@pytest.mark.skipif(installed_vllm()[1] is None, reason="vLLM is not installed")
def test_the_installed_vllm_has_everything_that_is_relied_on() -> None:
    assert faults_of("installed") == []


@pytest.mark.skipif(not WHEEL, reason="VLLM_WHEEL names no other vLLM")
def test_the_named_vllm_has_everything_that_is_relied_on() -> None:
    assert faults_of(WHEEL) == []


def test_the_ledger_has_everything_that_the_package_uses() -> None:
    known = ledgered()
    forgotten = {
        name: sorted(by - known.get(name, set()))
        for name, by in used().items()
        if by - known.get(name, set())
    }
    assert forgotten == {}


def test_the_ledger_has_no_import_that_the_package_does_not_use() -> None:
    found = used()
    plain = [seam for seam in seams() if seam.kind == "exists" and not seam.where.startswith("vllm.envs:")]
    assert plain
    for seam in plain:
        extra = set(seam.by) - found.get(seam.where, set())
        # a constant that is said again where vLLM must not be imported
        assert extra <= {"evaluation.bench_arms"}, seam


def test_every_entry_says_who_relies_on_it_and_why() -> None:
    known = modules()
    for seam in seams():
        assert seam.by and seam.why, seam
        assert set(seam.by) <= set(known), seam
        assert seam.where.startswith("vllm"), seam


def test_every_holder_of_upstream_objects_is_in_the_source() -> None:
    """Else a variable that gets another name takes what is reached through it out of sight."""
    trees = modules()
    for module, holders in HOLDERS.items():
        expressions = {
            ast.unparse(node) for node in ast.walk(trees[module]) if isinstance(node, ast.expr)
        } | {node.arg for node in ast.walk(trees[module]) if isinstance(node, ast.arg)}
        for expression in holders:
            if expression.rpartition(".")[0] not in holders:
                assert expression in expressions, (module, expression)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("runner", "engine."),
        ("self._runner", "engine."),
        ("vllm_config", ""),
        ("sampling_metadata", ""),
        ("llm", ""),
        ("self._llm", ""),
    ],
)
def test_objects_of_upstream_are_known_wherever_they_are_used(name: str, below: str) -> None:
    """No module reaches into such an object without being in `HOLDERS`."""
    trees = {module: tree for module, tree in modules().items() if module.startswith(below)}
    for module, tree in trees.items():
        reached = [
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == name
        ]
        assert not reached or name in HOLDERS.get(module, {}), (module, reached)


def test_a_source_that_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match="neither 'installed', a wheel"):
        open_source("/nowhere")
