"""The patch ledger: idempotent, loud when upstream moves, and nothing without a DARE configuration."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from types import ModuleType

import pytest

pytest.importorskip("vllm")

from vllm_dare.engine import plugin
from vllm_dare.errors import ConfigError


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("fake_upstream")
    module.add = lambda left, right: left + right  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_upstream", module)
    return module


def patch_of(qualname: str, parameters: tuple[str, ...]) -> plugin.Patch:
    def wrap(original: Callable[..., int]) -> Callable[..., int]:
        return lambda *args, **kwargs: original(*args, **kwargs) + 1

    return plugin.Patch("test", "fake_upstream", qualname, parameters, "why", "until", wrap)


def test_a_patch_is_applied_once(upstream: ModuleType) -> None:
    patch = patch_of("add", ("left", "right"))
    assert patch.status() == "ready"
    patch.apply()
    patch.apply()
    assert upstream.add(1, 2) == 4
    assert patch.status() == "applied"


@pytest.mark.parametrize(("qualname", "parameters"), [("added", ()), ("add", ("left", "middle"))])
def test_a_moved_upstream_is_one_clear_sentence(
    upstream: ModuleType, qualname: str, parameters: tuple[str, ...]
) -> None:
    patch = patch_of(qualname, parameters)
    assert "fake_upstream" in patch.status()
    with pytest.raises(ConfigError, match=r"fake_upstream\.add.*install vllm >=0\.32,<0\.34") as caught:
        patch.apply()
    assert "\n" not in str(caught.value)
    assert upstream.add(1, 2) == 3


@pytest.mark.parametrize("patch", plugin.ledger(), ids=lambda patch: patch.name)
def test_the_installed_vllm_has_every_patched_function(patch: plugin.Patch) -> None:
    assert patch.status() in {"ready", "applied"}
    assert patch.why
    assert patch.until


def test_every_supported_vllm_is_named_by_the_error(upstream: ModuleType) -> None:
    assert ">=0.32,<0.34" in patch_of("gone", ()).status()


def test_without_a_configuration_the_plugin_loads_nothing_heavy_and_patches_one_function() -> None:
    loaded = run_python(
        """
        import sys
        before = set(sys.modules)
        from vllm_dare.engine.plugin import register
        register()
        register()
        heavy = {"torch", "numba", "numpy", "vllm", "pyarrow", "pydantic", "vllm_dare.config"}
        print(sorted(heavy & (set(sys.modules) - before)))
        """
    )
    assert loaded == "[]"


def test_the_front_end_is_patched_without_importing_more() -> None:
    result = run_python(
        """
        import sys
        import vllm.engine.arg_utils as arg_utils
        before = set(sys.modules)
        from vllm_dare.engine import plugin
        plugin.register()
        plugin.register()
        new = {name for name in set(sys.modules) - before if not name.startswith("vllm_dare")}
        print(sorted(new), [patch.name for patch in plugin.ledger() if patch.module in before and
              patch.status() == "applied"])
        """
    )
    assert result == "[] ['configuration check']"


def test_worker_refuses_when_the_plugin_is_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(ConfigError, match="VLLM_PLUGINS leaves out vllm_dare"):
        plugin.prepare_worker()


def test_upstream_cpu_expansion_is_wrong_and_ours_is_right() -> None:
    """When the first half of this test fails, vLLM has mended its kernel and the patch can go."""
    output = run_python(
        """
        import torch
        from vllm.platforms import current_platform
        current_platform.import_kernels()
        current_platform.register_triton_kernel_overrides()
        from vllm.v1.sample import rejection_sampler
        from vllm_dare.engine import plugin

        cases = [
            (torch.tensor([0.7, 0.0, 1.3]), [2, 2, 5], 1),
            (torch.tensor([5, 0, 7], dtype=torch.int32), [0, 1, 4], 0),
            (torch.tensor([0.9, 1.0, 0.5]), [3, 3, 3], 0),
        ]
        def right():
            results = []
            for x, ends, to in cases:
                counts = [end - start for start, end in zip([0, *ends], ends)]
                expected = [float(to) if v == 0 else v for v, n in zip(x.tolist(), counts) for _ in range(n)]
                out = torch.full((64,), 5e9)  # dirty memory for new_empty to find
                del out
                got = rejection_sampler.expand_batch_to_tokens(
                    x, torch.tensor(ends, dtype=torch.int32), ends[-1], 0, to
                )
                results.append(got.dtype == x.dtype and got.tolist() == expected)
            return all(results)
        print(right())
        plugin.CPU_EXPANSION.apply()
        print(right())
        """
    )
    assert output.splitlines()[-2:] == ["False", "True"]
