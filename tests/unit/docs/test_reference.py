import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "commands.md", "metrics.md", "patches.md", "upstream.md"])
def test_the_pages_are_what_the_code_says(maker: ModuleType, name: str) -> None:
    """If this fails, run `python docs/make_reference.py`."""
    assert (DOCS / "reference" / name).read_text() == maker.pages()[name]


def test_every_page_is_checked(maker: ModuleType) -> None:
    assert {path.name for path in (DOCS / "reference").iterdir()} == set(maker.pages())


def test_every_patch_of_this_platform_is_there(maker: ModuleType) -> None:
    pytest.importorskip("vllm")
    from vllm_dare.engine.plugin import ledger

    page = maker.patches_page()
    for patch in ledger():
        assert f"| {patch.name} | `{patch.module}.{patch.qualname}` |" in page


def test_every_setting_and_key_is_there(maker: ModuleType) -> None:
    from vllm_dare.config import DareConfig, LiveConfig
    from vllm_dare.request import KNOWN_KEYS
    from vllm_dare.verification.rule import RuleLimits, VerificationConfig

    page = maker.settings_page()
    nested = {"live.": LiveConfig, "limits.": RuleLimits, "verification.": VerificationConfig}
    names = [f"{prefix}{name}" for prefix, model in nested.items() for name in model.model_fields]
    names += [name for name in DareConfig.model_fields if f"{name}." not in nested]
    for name in (*names, *KNOWN_KEYS):
        assert f"| `{name}` |" in page, name


def test_a_setting_without_a_meaning_is_an_error(maker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(maker.MEANINGS, "live.max_tokens")
    monkeypatch.setitem(maker.MEANINGS, "live.min_tokens", "gone")
    with pytest.raises(ValueError, match=r"lacks \['live.max_tokens'\] and knows \['live.min_tokens'\]"):
        maker.settings_page()


def test_options_are_called_as_on_the_command_line(maker: ModuleType) -> None:
    page = maker.commands_page()
    assert "| `--json` | path |  | Write the summary as JSON. |" in page
    assert "| `--draft-tokens` | number from 1 to 128 | `16` | Most draft tokens a step. |" in page
    assert "`--json-file`" not in page
