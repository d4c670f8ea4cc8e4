import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="it comes with vLLM")
httpx = pytest.importorskip("httpx", reason="it comes with vLLM")

EXAMPLES = Path(__file__).parents[3] / "examples"
KEYS = {"key-a": "tenants/a", "key-b": "tenants/b"}


@pytest.fixture(scope="module")
def gateway() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gateway", EXAMPLES / "gateway.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def salt_of(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()


class Server:
    """What vLLM's server would be asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[Any] = []
        self.status, self.content, self.kind = 200, b'{"choices": []}', "application/json"

    async def __call__(self, request: Any) -> Any:
        self.bodies.append(json.loads(request.content))
        self.paths.append(request.url.path)
        self.headers.append(request.headers)
        return httpx.Response(self.status, content=self.content, headers={"content-type": self.kind})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def ask(gateway: ModuleType, server: Server) -> Any:
    """Sends a body with a key, and gives the answer."""
    import asyncio

    tenants = {hashlib.sha256(key.encode()).hexdigest(): group for key, group in KEYS.items()}

    async def send(body: Any, key: str | None, path: str) -> Any:
        upstream = httpx.AsyncClient(transport=httpx.MockTransport(server), base_url="http://server")
        app = gateway.make_app(tenants, upstream)
        transport = httpx.ASGITransport(app=app)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with upstream, httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await client.post(path, content=content, headers=headers)

    def run(body: Any, key: str | None = "key-a", path: str = "/v1/completions") -> Any:
        return asyncio.run(send(body, key, path))

    return run


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("key", KEYS)
def test_the_key_says_the_group(ask: Any, server: Server, key: str, path: str) -> None:
    answer = ask({"prompt": "x", "max_tokens": 5}, key, path)
    assert answer.status_code == 200
    assert answer.json() == {"choices": []}
    assert server.paths == [path]
    assert server.bodies == [
        {
            "prompt": "x",
            "max_tokens": 5,
            "vllm_xargs": {"dare_group": KEYS[key]},
            "cache_salt": salt_of(KEYS[key]),
        }
    ]


def test_what_a_client_says_of_drafts_does_not_count(ask: Any, server: Server) -> None:
    xargs = {
        "dare_group": "tenants/b",
        "dare_user": "b7",
        "dare_history": [1],
        "dare_preset": "fast",
        "dare_nonsense": 1,
        "other": "stays",
    }
    ask({"prompt": "x", "vllm_xargs": xargs, "cache_salt": "tenants/b"})
    assert server.bodies[0]["vllm_xargs"] == {"other": "stays", "dare_group": "tenants/a"}
    assert server.bodies[0]["cache_salt"] == salt_of("tenants/a")


def test_a_name_that_is_there_twice_counts_once(ask: Any, server: Server) -> None:
    ask(b'{"prompt": "x", "vllm_xargs": {}, "vllm_xargs": {"dare_group": "tenants/b"}}')
    assert server.bodies[0]["vllm_xargs"] == {"dare_group": "tenants/a"}


@pytest.mark.parametrize("key", [None, "", "key-c", "tenants/a", hashlib.sha256(b"key-a").hexdigest()])
def test_strangers_are_turned_away(ask: Any, server: Server, key: str | None) -> None:
    assert ask({"prompt": "x"}, key).status_code == 401
    assert server.bodies == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'{"vllm_xargs": [1]}', b'{"vllm_xargs": "dare_group"}']
)
def test_bad_bodies_are_the_clients_error(ask: Any, server: Server, body: bytes) -> None:
    assert ask(body).status_code == 400
    assert server.bodies == []


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/models", "/inference/v1/generate", "/pause", "/metrics"]
)
def test_no_other_route_leads_to_the_server(ask: Any, server: Server, path: str) -> None:
    assert ask({"prompt": "x"}, path=path).status_code in (404, 405)
    assert server.bodies == []


def test_answers_come_as_they_are(ask: Any, server: Server) -> None:
    server.status, server.kind = 400, "text/event-stream; charset=utf-8"
    server.content = b"data: {}\n\ndata: [DONE]\n\n"
    answer = ask({"prompt": "x", "stream": True})
    assert (answer.status_code, answer.content) == (400, server.content)
    assert answer.headers["content-type"] == server.kind


def test_the_clients_key_stays_here(ask: Any, server: Server) -> None:
    ask({"prompt": "x"})
    assert "authorization" not in server.headers[0]


def test_the_environment_says_who_and_where(
    gateway: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tenants.json").write_text("{}")
    monkeypatch.setenv("TENANTS", str(tmp_path / "tenants.json"))
    monkeypatch.setenv("UPSTREAM", "http://127.0.0.1:8000")
    app = gateway.from_environment()
    assert {getattr(route, "path", None) for route in app.routes} >= set(gateway.ROUTES)
