"""What Ray's failures are to a user."""

import socket
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


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "ray://localhost:{port}"])
@pytest.mark.parametrize("by_environment", [False, True])
def test_an_address_where_nothing_listens_is_told_at_once(
    address: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray waits for it"))
    with socket.socket() as unused:  # bound, but it does not listen
        unused.bind(("127.0.0.1", 0))
        address = address.format(port=unused.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address if by_environment else "")
        with (
            pytest.raises(DareError, match=rf"Nothing answers .*:{unused.getsockname()[1]} \(.*check --ray-"),
            connected(None if by_environment else address),
        ):
            pass


@pytest.mark.parametrize("address", [None, "auto", "local", "host", "other://127.0.0.1:1"])
def test_other_addresses_are_ray_s(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    given: list[object] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda address, **_: given.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with connected(address):
        pass
    assert given == [address]


@pytest.mark.parametrize("address", ["nonsense:x", "127.0.0.1:99999", "ray://127.0.0.1:99999"])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray waits for it"))
    with pytest.raises(DareError, match=f"^{address} is no address of a Ray cluster"), connected(address):
        pass


def test_a_head_that_listens_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    given: list[object] = []
    monkeypatch.setattr(ray, "init", lambda address, **_: given.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with connected(address):
            pass
    assert given == [address]


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
