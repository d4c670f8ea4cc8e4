"""Checks of an installation: each gives one finding in one sentence that says what to do."""

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from vllm_dare import __version__
from vllm_dare.engine.installed import (
    FIRST_UNKNOWN_VLLM,
    OLDEST_VLLM,
    installed_vllm,
    is_cpu_vllm,
    is_supported,
)
from vllm_dare.engine.preload import preload_libraries
from vllm_dare.errors import DareError

Status = Literal["ok", "warning", "failed"]

_PLUGIN = "vllm_dare"


@dataclass(frozen=True)
class Check:
    """One finding; ``failed`` means that generation would not work."""

    name: str
    status: Status
    sentence: str


def run_checks(pool: Path | None = None, model: str | None = None) -> list[Check]:
    """All checks that apply; a check that itself breaks is a failed check."""
    checks: list[tuple[str, Callable[[], Check | list[Check]]]] = [
        ("Python", _check_python),
        ("vllm-dare", _check_version),
        ("vLLM", _check_vllm),
    ]
    if installed_vllm()[1] is not None:  # the rest would only say ten times that it is missing
        checks += [
            ("PyTorch", _check_torch),
            ("torchvision", _check_torch_companions),
            ("plugin", _check_plugin),
            ("patches", _check_patches),
            ("preload", _check_preload),
        ]
    checks.append(("kernel cache", _check_kernel_cache))
    if pool is not None:
        checks.append(("pool", lambda: _check_pool(pool, model)))
    found: list[Check] = []
    for name, check in checks:
        try:
            result = check()
        except Exception as error:
            result = Check(name, "failed", f"The check itself failed: {type(error).__name__}: {error}.")
        found += result if isinstance(result, list) else [result]
    return found


def _check_python() -> Check:
    where = f"{platform.system()} {platform.machine()}"
    return Check("Python", "ok", f"Python {platform.python_version()} on {where}, in {sys.prefix}.")


def _check_version() -> Check:
    return Check("vllm-dare", "ok", f"vllm-dare {__version__}.")


def _check_vllm() -> Check:
    name, version = installed_vllm()
    if version is None:
        return Check(
            "vLLM",
            "failed",
            "vLLM is not installed, so only the pool commands work; `pip install 'vllm-dare[cuda]'`, or see "
            "the README for the CPU build.",
        )
    numbers = tuple(int(part) for part in version.split(".")[:2])
    supported = f"{'.'.join(map(str, OLDEST_VLLM))} up to, but not, {'.'.join(map(str, FIRST_UNKNOWN_VLLM))}"
    if not is_supported(numbers):
        return Check("vLLM", "failed", f"{name} {version} is not supported; install a vLLM from {supported}.")
    return Check("vLLM", "ok", f"{name} {version} (supported: {supported}).")


def _check_torch() -> Check:
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        return Check("PyTorch", "failed", f"PyTorch cannot be imported: {error}.")
    if torch.cuda.is_available():
        return Check("PyTorch", "ok", f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}.")
    if is_cpu_vllm():
        return Check("PyTorch", "ok", f"PyTorch {torch.__version__} on CPU with {os.cpu_count()} cores.")
    return Check(
        "PyTorch",
        "failed",
        f"PyTorch {torch.__version__} sees no GPU but vLLM is built for one; check the driver, "
        "or install the CPU build as the README says.",
    )


def _check_torch_companions() -> Check:
    """A CUDA torchvision beside a CPU torch breaks the import of transformers."""
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check("torchvision", "warning", "Not checked, for PyTorch is not installed.")
    build = _build(torch_version)
    others = {}
    for name in ("torchvision", "torchaudio", "torchcodec"):
        try:
            others[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    wrong = [f"{name} {version}" for name, version in others.items() if _build(version) != build]
    if wrong and build == "cpu":
        return Check(
            "torchvision",
            "failed",
            f"{', '.join(wrong)} do not fit PyTorch {torch_version}; text models need none of them: "
            f"`pip uninstall -y {' '.join(others)}`.",
        )
    return Check("torchvision", "ok", "None that could break the import of transformers.")


def _build(version: str) -> str:
    return version.partition("+")[2]


def _check_plugin() -> Check:
    visible = [point.name for point in metadata.entry_points(group="vllm.general_plugins")]
    if _PLUGIN not in visible:
        return Check(
            "plugin",
            "failed",
            "vLLM does not see the vllm_dare plugin in this environment; install vllm-dare with "
            "pip rather than by PYTHONPATH.",
        )
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is not None and _PLUGIN not in chosen.split(","):
        return Check(
            "plugin", "failed", f"VLLM_PLUGINS={chosen} leaves vllm_dare out; add it, or unset the variable."
        )
    return Check("plugin", "ok", "vLLM will load the vllm_dare plugin.")


def _check_patches() -> list[Check]:
    ledger: Callable[[], list[Any]] = import_module("vllm_dare.engine.plugin").ledger
    return [_check_patch(patch) for patch in ledger()]


def _check_patch(patch: Any) -> Check:
    state = patch.status()
    name = f"patch: {patch.name}"
    if state in ("ready", "applied"):
        return Check(name, "ok", f"Fits this vLLM. {patch.why}")
    return Check(name, "failed", f"{state} {patch.why}")


def _check_preload() -> Check:
    if not is_cpu_vllm():
        return Check("preload", "ok", "Nothing to preload for a GPU build.")
    names = os.environ.get("LD_PRELOAD", "") + "".join(map(str, preload_libraries()))
    missing = []
    if "libiomp" not in names and platform.machine() == "x86_64":
        missing.append("Intel OpenMP (`pip install intel-openmp`)")
    if "libtcmalloc" not in names:
        missing.append("tcmalloc (Debian package libtcmalloc-minimal4)")
    if missing:
        return Check("preload", "warning", f"vLLM would be faster on CPU with {' and '.join(missing)}.")
    return Check("preload", "ok", "Intel OpenMP and tcmalloc are there; `vllm-dare generate` preloads them.")


def _check_kernel_cache() -> Check:
    """Numba keeps compiled kernels beside the source, else in the user's cache folder."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    folders = [Path(chosen)] if chosen else [Path(__file__).parent / "pool" / "__pycache__", _user_cache()]
    folder = next((folder for folder in folders if _is_writable(folder)), None)
    if folder is None:
        return Check(
            "kernel cache",
            "warning",
            "Compiled kernels cannot be kept, so every start compiles them anew; set "
            "NUMBA_CACHE_DIR to a writable folder.",
        )
    compiled = any(folder.rglob("*.nbi")) if folder.exists() else False
    return Check(
        "kernel cache", "ok", f"{folder} is writable; {'compiled' if compiled else 'compiled at first use'}."
    )


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "numba"


def _is_writable(folder: Path) -> bool:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return os.access(existing, os.W_OK)


def _check_pool(directory: Path, model: str | None) -> Check:
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.pool.summary import summarize
    from vllm_dare.pool.tokenizer import load_tokenizer, tokenizer_info

    try:
        with RetrievalPool.open(directory) as pool:
            pool.check_files()
            pool.verify_checksums()
            if model is not None:
                info = tokenizer_info(load_tokenizer(model), model)
                pool.check_tokenizer(info.name, info.fingerprint)
            summary = summarize(pool.manifest)
            size = f"{len(pool.groups)} groups, {summary.num_tokens:,} tokens"
    except DareError as error:
        return Check("pool", "failed", str(error))
    fits = "" if model is None else f" and the tokenizer of {model}"
    return Check("pool", "ok", f"{directory} is whole: {size}{fits}.")
