"""What Ray's failures are to a user."""

import subprocess
import sys

import pytest

from vllm_dare.errors import DareError, PoolError
from vllm_dare.scale.cluster import connected, user_error


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(DareError, match=r"Ray cannot be imported .* `pip install .vllm-dare\[ray\].`"),
        connected(None),
    ):
        pass


def test_an_address_where_nobody_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def fail(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(DareError, match=r"at auto cannot be used \(Could not find any running Ray instance\)"),
        connected("auto"),
    ):
        pass


def test_our_error_is_found_within_ray_s() -> None:
    ours = PoolError("It is broken.")
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = ours
    assert user_error(wrapped) is ours
    assert user_error(ours) is ours
    assert user_error(RuntimeError("other")) is None


def test_nothing_of_ray_is_imported_without_being_asked_for() -> None:
    code = (
        "import sys, vllm_dare.cli.app, vllm_dare.generation.job, vllm_dare.pool.build\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'ray' or 'vllm_dare.scale' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
