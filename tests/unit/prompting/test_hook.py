"""Functions of one's own are found by file or module."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_dare.errors import DareError
from vllm_dare.prompting.hook import load_hook

WriteTable = Callable[[str, str], Path]
OWN = """\
from __future__ import annotations
from dataclasses import dataclass
from json import dumps

@dataclass
class Style:
    name: str = "short"

def build(subject):
    return f"{Style().name} {subject}"

number = 7
"""


def test_a_file(write: WriteTable) -> None:
    path = write("json.py", OWN)  # a name that a module of the standard library has
    assert load_hook(f"{path}:build")("x") == "short x"
    import json

    assert json.loads("[1]") == [1]


def test_a_module(write: WriteTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write("own_prompts_module.py", OWN).parent)
    assert load_hook("own_prompts_module:build")("x") == "short x"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("{folder}/nowhere.py:build", r"There is no file .*nowhere.py; check the path"),
        ("{folder}:build", r"There is no module "),
        ("nowhere.prompts:build", "There is no module nowhere.prompts; install it, add its folder"),
        ("json.nowhere:build", "There is no module json.nowhere"),
        ("{folder}/own.py:make", r"own.py has no function 'make'; its functions: build."),
        ("{folder}/own.py:", r"own.py has no function ''; its functions: build."),
        ("{folder}/own.py:number", r"own.py has no function 'number'; its functions: build."),
        ("{folder}/bare.py:build", r"bare.py has no function 'build'; its functions: none."),
        ("{folder}/broken.py:build", r"broken.py cannot be loaded \(SyntaxError: .*\); mend it"),
        ("{folder}/raises.py:build", r"raises.py cannot be loaded \(ZeroDivisionError: division by zero\)"),
        ("{folder}/needs.py:build", r"needs.py cannot be loaded \(ModuleNotFoundError: No module named"),
        (":build", "cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded(write: WriteTable, tmp_path: Path, name: str, sentence: str) -> None:
    for file, text in (
        ("own.py", OWN),
        ("bare.py", "x = 1\n"),
        ("broken.py", "def build(:\n"),
        ("raises.py", "1 / 0\n"),
        ("needs.py", "import nowhere_at_all\n"),
    ):
        write(file, text)
    with pytest.raises(DareError, match=sentence) as error:
        load_hook(name.format(folder=tmp_path))
    assert "\n" not in str(error.value)
