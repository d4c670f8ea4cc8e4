"""Where figures come from: versions, the checkout's commit, the machine."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import vllm_dare
from vllm_dare.engine.installed import installed_vllm
from vllm_dare.pool.threads import usable_cores

_PACKAGES = ("torch", "arctic-inference", "numba", "numpy")


def provenance() -> dict[str, Any]:
    """Everything about this machine and installation that figures depend on, as JSON values."""
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(Path(vllm_dare.__file__).parent),
        "machine": machine(),
    }


def origin_lines(origin: Mapping[str, Any]) -> list[str]:
    """What a report says of `provenance` beside the machine: versions, commit and start."""
    found = ", ".join(f"{name} {version}" for name, version in origin["versions"].items() if version)
    commit_line = f"commit {origin['commit']}" if origin["commit"] else "no checkout"
    return [found, commit_line, f"started {origin['started_at']}"]


def versions() -> dict[str, str | None]:
    """Package to version; None for what is not installed."""
    vllm, vllm_version = installed_vllm()
    found = {"vllm-dare": vllm_dare.__version__, vllm: vllm_version, "python": platform.python_version()}
    return found | {name: _version(name) for name in _PACKAGES}


def commit(folder: Path) -> str | None:
    """The commit that ``folder`` is at, with ``-dirty`` if tracked files below it have changed since.

    None where vllm-dare was installed from a package, or git is missing.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # a repository that merely surrounds the installation is not ours
    head = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    return None if head is None else head + ("-dirty" if changed else "")


def machine() -> dict[str, Any]:
    """CPU, cores that this process may use, memory in bytes, and how busy the machine already is."""
    return {
        "cpu": _after_colon(Path("/proc/cpuinfo"), "model name") or platform.processor() or None,
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _after_colon(path: Path, key: str) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
