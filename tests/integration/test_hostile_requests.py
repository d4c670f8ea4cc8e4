"""A server that learns, and clients that send it what nobody should: each gets a 4xx, and it serves on."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .server import metrics, running_server

pytestmark = pytest.mark.filterwarnings("default")

# What vLLM itself says of a request whose form is wrong may be longer.
MOST_BYTES = 2000


@pytest.fixture(scope="module")
def address(demo_model: str, demo_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {"pool": str(demo_pool), "live": {}}
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with running_server(demo_model, settings, log) as address:
        yield address


def post(address: str, body: bytes, path: str = "completions") -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"{address}/v1/{path}", body, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def body(xargs: str, **fields: Any) -> bytes:
    """A completion with `vllm_xargs` that are written as they are given."""
    request = {
        "model": "demo",
        "prompt": "Write",
        "max_tokens": 8,
        "temperature": 0,
        **fields,
        "vllm_xargs": "?",
    }
    return json.dumps(request).replace('"?"', xargs).encode()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def assert_serves(address: str) -> None:
    status, answer = post(address, body('{"dare_user": "u1"}'))
    assert status == 200, answer[:1000]
    assert json.loads(answer)["usage"]["completion_tokens"] > 0


REFUSED_BY_KEYS = {
    "half a surrogate pair": r'{"dare_group": "\ud800"}',
    "NUL in a name": r'{"dare_group": "a\u0000b"}',
    "half a surrogate pair in a key": r'{"dare_\ud800": 1}',
    "half a surrogate pair that is guarded": r'{"dare_preset": "fast", "dare_never_relax": ["a\udfff"]}',
    "a long text": json.dumps({"dare_user": "x" * 10**7}),
    "a long key": json.dumps({"dare_" + "x" * 10**6: 1}),
    "very many keys": json.dumps({f"dare_{i}": i for i in range(10**5)}),
    "an integer beyond 64 bits": json.dumps({"dare_item": 10**400}),
    "an integer just beyond 64 bits": json.dumps({"dare_user": 2**63}),
    "a token that no array holds": json.dumps({"dare_preset": "fast", "dare_never_relax": [2**63]}),
    "a bound that no float holds": json.dumps({"dare_preset": "fast", "dare_top_k": 10**400}),
    "a window without end": json.dumps({"dare_preset": "fly", "dare_window": 2**63}),
    "no number": '{"dare_preset": "fast", "dare_min_prob": NaN}',
    "an infinite number": '{"dare_preset": "fast", "dare_min_ratio": Infinity}',
    "very many guards": json.dumps({"dare_preset": "fast", "dare_never_relax": ["e"] * 10**5}),
    "a long history": json.dumps({"dare_history": list(range(10**5))}),
    "a long attribute": json.dumps({"dare_attributes": ["a=" + "b" * 10**6]}),
}
REFUSED_BY_VLLM = {
    "deep nesting": f'{{"dare_history": {nested(900)}}}',
    "deeper nesting": f'{{"dare_history": {nested(10**5)}}}',
    "a dictionary": '{"dare_attributes": {"age": 25}}',
    "null": '{"dare_group": null}',
    "a list": '["dare_group"]',
    "thousands of digits": f'{{"dare_user": {"9" * 5000}}}',
    "no JSON": '{"dare_user": }',
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("xargs", REFUSED_BY_KEYS.values(), ids=REFUSED_BY_KEYS.keys())
def test_hostile_values_are_refused_in_a_short_sentence(address: str, xargs: str, stream: bool) -> None:
    status, answer = post(address, body(xargs, stream=stream))
    assert status == 400, answer[:1000]
    assert len(answer) < MOST_BYTES


@pytest.mark.parametrize("xargs", REFUSED_BY_VLLM.values(), ids=REFUSED_BY_VLLM.keys())
def test_hostile_forms_are_refused(address: str, xargs: str) -> None:
    status, answer = post(address, body(xargs))
    assert 400 <= status < 500, answer[:1000]


def test_it_serves_and_learns_all_the_same(address: str) -> None:
    for xargs in ('{"dare_group": "\\u0001 [{\\" 漢"}', '{"dare_user": 9223372036854775807}', "{}"):
        status, answer = post(address, body(xargs, max_tokens=40))
        assert status == 200, answer[:1000]
    assert_serves(address)
    assert metrics(address)["vllm_dare_errors_total"] == 0
