"""The pages fit together: pictures, links, and the messages that troubleshooting explains."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_every_page_is_in_the_navigation() -> None:
    def files(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [
            name for child in (part.values() if isinstance(part, dict) else part) for name in files(child)
        ]

    text = (ROOT / "mkdocs.yml").read_text()
    assert sorted(files(yaml.safe_load(text)["nav"])) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def messages() -> str:
    """All texts of the package, with a … for what they fill in."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        return str(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"

    found = []
    for path in [*(ROOT / "vllm_dare").rglob("*.py"), *(ROOT / "docker").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                found.append(text(node))
    return "\n".join(found).replace("%s", "…").replace("%d", "…")


def test_troubleshooting_explains_messages_that_exist() -> None:
    known = messages()
    page = (DOCS / "troubleshooting.md").read_text()
    heads = [line for line in re.findall(r"^(.*)\n:   ", page, re.MULTILINE) if "`" in line]
    assert len(heads) > 25
    for head in heads:
        for message in re.findall(r"`([^`]+)`", head):
            parts = [part.strip() for part in message.split("…")]
            pattern = r"[^\n]*".join(re.escape(part) for part in parts)
            assert re.search(pattern, known), message
