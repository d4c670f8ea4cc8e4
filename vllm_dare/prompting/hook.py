"""A framework of one's own: a Python function, named by its file or module."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from vllm_dare.errors import DareError

_MODULE = "_vllm_dare_framework"  # no name that a module of somebody's could have


def load_hook(name: str) -> Callable[[Any], Any]:
    """Load ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``.

    Raises:
        DareError: the file or module is not there or cannot be loaded, or has no such function.
    """
    place, _, function = name.rpartition(":")
    module = _load(place)
    found = getattr(module, function, None)
    if not callable(found):
        own = [name for name, value in vars(module).items() if _is_own_function(value, module)]
        raise DareError(f"{place} has no function {function!r}; its functions: {', '.join(own) or 'none'}.")
    return found  # type: ignore[no-any-return]  # what it returns is checked subject by subject


def _load(place: str) -> ModuleType:
    try:
        return _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except DareError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise DareError(
                f"There is no module {place}; install it, add its folder to PYTHONPATH, or give a file as "
                "FILE.py:FUNCTION."
            ) from None
        raise _failed(place, error) from error
    except Exception as error:  # whatever the module does when it is loaded
        raise _failed(place, error) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DareError(f"There is no file {path}; check the path of the framework.")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise DareError(f"{path} is no Python file; name a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def _is_own_function(value: Any, module: ModuleType) -> bool:
    return isinstance(value, FunctionType) and value.__module__ == module.__name__


def _failed(place: str, error: Exception) -> DareError:
    return DareError(f"The framework {place} cannot be loaded ({reason(error)}); mend it.")


def reason(error: Exception) -> str:
    """An error of somebody else's code as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
