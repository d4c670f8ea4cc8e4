"""Packages that single commands need and the rest of vllm-dare does not."""

import importlib
from typing import Any

from vllm_dare.errors import DareError


def need(module: str, package: str, install: str = "'vllm-dare[evaluate]'") -> Any:
    """Import a module of an optional package.

    Args:
        module: its full name.
        package: what its users call the package.
        install: what pip is to be told.

    Raises:
        DareError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DareError(
            f"{package} cannot be imported ({error}); install it with `pip install {install}`."
        ) from None
