"""The source text of a vLLM that need not be installed, let alone imported."""

import importlib.util
import tarfile
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath

from vllm_dare.engine.installed import installed_vllm

INSTALLED = "installed"


class SourceError(Exception):
    """A source that cannot be read; the message says what one is."""


class Source:
    """The files of one vLLM.

    Args:
        name: what reports call it.
        read: returns a file's bytes by its path below the directory that holds ``vllm``; None without one.

    Attributes:
        name: as above.
    """

    def __init__(self, name: str, read: Callable[[str], bytes | None]) -> None:
        self.name, self._read = name, read

    def text(self, module: str) -> tuple[str, str] | None:
        """The path and text of a module (``vllm.v1.outputs``); None if it does not exist."""
        path = module.replace(".", "/")
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            found = self._read(candidate)
            if found is not None:
                return candidate, found.decode()
        return None


def open_source(what: str) -> Source:
    """Open ``installed``, a wheel, a source distribution, or a directory that holds ``vllm``.

    Raises:
        SourceError: it is none of these.
    """
    if what == INSTALLED:
        spec = importlib.util.find_spec("vllm")  # finds the package without importing it
        if spec is None or not spec.submodule_search_locations:
            raise SourceError("vLLM is not installed; name a wheel, an sdist or a directory instead.")
        name, version = installed_vllm()
        return Source(f"{name} {version}", _Directory(Path(spec.submodule_search_locations[0]).parent))
    path = Path(what)
    if (path / "vllm" / "__init__.py").is_file():
        return Source(path.name, _Directory(path))
    if path.suffix == ".whl" and path.is_file():
        return Source("-".join(path.name.split("-")[:2]), _Wheel(path))
    if path.name.endswith(".tar.gz") and path.is_file():
        return Source(path.name.removesuffix(".tar.gz"), _Sdist(path))
    raise SourceError(
        f"{what} is neither '{INSTALLED}', a wheel, an sdist, nor a directory that holds vllm/."
    )


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, path: str) -> bytes | None:
        file = self._root / path
        return file.read_bytes() if file.is_file() else None


class _Wheel:
    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._names = set(self._archive.namelist())

    def __call__(self, path: str) -> bytes | None:
        return self._archive.read(path) if path in self._names else None


class _Sdist:
    """A compressed tar, which is read once, from front to end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, path: str) -> bytes | None:
        return self._files.get(path)

    @cached_property
    def _files(self) -> dict[str, bytes]:
        files = {}
        with tarfile.open(self._path) as archive:
            for member in archive:
                inner = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # below vllm-0.33.0/
                if inner.suffix == ".py" and inner.parts[0] == "vllm":
                    opened = archive.extractfile(member)
                    assert opened is not None
                    files[str(inner)] = opened.read()
        return files
