"""Libraries for vLLM's CPU workers go into the environment that they inherit."""

import os
import sys
from pathlib import Path

import pytest

from vllm_dare.engine import preload


@pytest.fixture(autouse=True)
def cpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A CPU machine with Intel OpenMP and tcmalloc, and nothing preloaded."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    (tmp_path / "lib" / "libtcmalloc_minimal.so.4").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(preload, "_LIBRARY_FOLDERS", (str(tmp_path / "lib"),))
    monkeypatch.setattr(preload, "is_cpu_vllm", lambda: True)
    monkeypatch.setenv("LD_PRELOAD", "")
    return tmp_path / "lib"


def test_both_are_preloaded_before_what_was_there(cpu_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    preload.preload_for_cpu()
    found = os.environ["LD_PRELOAD"].split(":")
    assert found == [
        str(cpu_machine / "libiomp5.so"),
        str(cpu_machine / "libtcmalloc_minimal.so.4"),
        "other.so",
    ]


def test_a_second_call_adds_nothing() -> None:
    assert len(preload.preload_for_cpu()) == 2
    assert preload.preload_for_cpu() == []


def test_an_operators_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/x/libgomp.so.1")
    assert preload.preload_for_cpu() == []


def test_a_gpu_build_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "is_cpu_vllm", lambda: False)
    assert preload.preload_for_cpu() == []
    assert os.environ["LD_PRELOAD"] == ""


def test_what_is_not_installed_is_not_preloaded(cpu_machine: Path) -> None:
    for library in cpu_machine.iterdir():
        library.unlink()
    assert preload.preload_libraries() == []
