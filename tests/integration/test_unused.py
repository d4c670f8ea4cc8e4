"""An engine without DARE where the plugin is installed: what it loads, what it replaces, what it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import DEMO

ROOT = Path(__file__).parents[2]

# Counts the calls of our functions while an engine starts and while it generates, in its own process.
CODE = """
import json, sys, threading
from collections import Counter
from types import FunctionType

OURS = sys.argv[1]
calls = Counter()

def count(frame, event, _):
    if event == "call" and frame.f_code.co_filename.startswith(OURS):
        calls[f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"] += 1

threading.setprofile(count)
sys.setprofile(count)
from vllm import LLM, SamplingParams

engine = LLM(sys.argv[2], enforce_eager=True, dtype="float32", max_model_len=128, max_num_seqs=4)
at_start = dict(calls)
calls.clear()
engine.generate(["Liked the book"] * 4, SamplingParams(max_tokens=16, ignore_eos=True), use_tqdm=False)
sys.setprofile(None)
threading.setprofile(None)

def functions(names):
    return [(name, value) for name, value in names.items() if isinstance(value, FunctionType)]

def is_ours(function):
    return function.__code__.co_filename.startswith(OURS)

replaced = set()
for module in [module for name, module in list(sys.modules.items()) if not name.startswith("vllm_dare")]:
    for name, value in list(getattr(module, "__dict__", {}).items()):
        if isinstance(value, FunctionType) and is_ours(value):
            replaced.add(f"{module.__name__}.{name}")
        elif isinstance(value, type):
            ours = [key for key, part in functions(vars(value)) if is_ours(part)]
            replaced |= {f"{value.__qualname__}.{key}" for key in ours}
ours = sorted(name for name in sys.modules if name.partition(".")[0] == "vllm_dare")
print(json.dumps({"start": at_start, "generate": dict(calls), "replaced": sorted(replaced), "modules": ours}))
"""


@pytest.fixture(scope="module")
def unused() -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT / "vllm_dare"), str(DEMO / "model")],
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "vllm_dare"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_nothing_of_ours_runs_in_a_step_or_for_a_request(unused: dict[str, Any]) -> None:
    assert unused["generate"] == {}


def test_one_function_is_replaced_which_is_called_once_an_engine(unused: dict[str, Any]) -> None:
    assert unused["replaced"] == ["EngineArgs.create_engine_config"]
    at_start = unused["start"]
    assert at_start["vllm_dare.engine.plugin.register"] == 1
    wrapper = "vllm_dare.engine.plugin._check_configuration.<locals>.create_engine_config"
    assert at_start[wrapper] == at_start["vllm_dare.engine.configured.mentions_dare"] == 1


def test_what_is_loaded_is_the_plugin_alone(unused: dict[str, Any]) -> None:
    light = ("configured", "installed", "orphans", "plugin", "request_meters", "spans")
    assert unused["modules"] == sorted(
        ["vllm_dare", "vllm_dare.engine", "vllm_dare.errors", *(f"vllm_dare.engine.{name}" for name in light)]
    )
