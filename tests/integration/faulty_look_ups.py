"""Makes every third look-up of a real engine fail. Run as ``sitecustomize`` of the server's processes."""

import importlib.abc
import importlib.machinery
import itertools
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODULE = "vllm_dare.drafting.drafter"
# While this file is there.
SWITCH = "FAULTY_LOOK_UPS_SWITCH"


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        draft, numbers = module.Drafter.draft, itertools.count()

        def failing(*args: Any, **kwargs: Any) -> Any:
            if os.path.exists(os.environ[SWITCH]) and next(numbers) % 3 == 0:
                raise RuntimeError("a look-up that raises")
            return draft(*args, **kwargs)

        module.Drafter.draft = failing


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if SWITCH in os.environ:
    sys.meta_path.insert(0, _Finder())
