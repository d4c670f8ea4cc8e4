"""Libraries that vLLM's CPU workers want in ``LD_PRELOAD``: Intel OpenMP and tcmalloc.

vLLM starts its CPU workers as fresh processes, which inherit the environment, so it is enough to set the
variable before the engine is built; this process itself computes nothing and stays as it is.
"""

import os
import sys
from pathlib import Path

from vllm_dare.engine.installed import is_cpu_vllm

_LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
_TCMALLOC_NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")


def preload_libraries() -> list[Path]:
    """The libraries found on this machine that the environment does not preload yet.

    Intel OpenMP comes from the pip package ``intel-openmp``, tcmalloc from the operating system; vLLM's
    own copy of tcmalloc, where it has one, is preloaded by vLLM itself.
    """
    wanted = (_intel_openmp(), _tcmalloc())
    already = os.environ.get("LD_PRELOAD", "")
    return [path for path in wanted if path is not None and path.name.split(".")[0] not in already]


def preload_for_cpu() -> list[Path]:
    """Add `preload_libraries` to ``LD_PRELOAD`` for the processes started from here, if vLLM runs on CPU.

    Does nothing on a GPU build of vLLM, off Linux, or where the operator has chosen an OpenMP library.

    Returns:
        what was added.
    """
    if sys.platform != "linux" or not is_cpu_vllm() or _has_openmp():
        return []
    added = preload_libraries()
    before = os.environ.get("LD_PRELOAD")
    if added:
        os.environ["LD_PRELOAD"] = ":".join([*map(str, added), *([before] if before else [])])
    return added


def _has_openmp() -> bool:
    return any(name in os.environ.get("LD_PRELOAD", "") for name in ("libiomp", "libomp", "libgomp"))


def _intel_openmp() -> Path | None:
    path = Path(sys.prefix) / "lib" / "libiomp5.so"
    return path if path.is_file() else None


def _tcmalloc() -> Path | None:
    paths = (Path(folder) / name for name in _TCMALLOC_NAMES for folder in _LIBRARY_FOLDERS)
    return next((path for path in paths if path.is_file()), None)
