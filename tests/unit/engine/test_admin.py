"""The routes that look after a server's pool, on an application without an engine."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

pytest.importorskip("vllm")
pytest.importorskip("httpx")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from vllm_dare.engine.admin import AdminEndpoints
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.store.cache import pool_directory

TEXT = list(range(1, 13))
PATHS = {"GET": ["status", "groups"], "POST": ["reload", "documents", "drop", "flush"]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(64)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def pool(tokenizer: str, tmp_path: Path) -> Path:
    documents = [
        Document(
            id=str(number), token_ids=np.array([*TEXT, 20 + number], np.int32), group=f"users/{number % 3}"
        )
        for number in range(6)
    ]
    build_pool(documents, tokenizer, tmp_path / "pool")
    return tmp_path / "pool"


Serve = Callable[..., TestClient]


@pytest.fixture
def serve(tokenizer: str) -> Serve:
    def serve(settings: dict[str, Any] | None, *, api_key: list[str] | None = None) -> TestClient:
        speculative = SimpleNamespace(method="custom_class", model="vllm_dare.DareProposer")
        config = SimpleNamespace(
            speculative_config=None if settings is None else speculative,
            additional_config={"dare": settings or {}},
            model_config=SimpleNamespace(tokenizer=tokenizer),
        )
        app, plugin = FastAPI(), AdminEndpoints()
        plugin.attach_router(app)
        args = SimpleNamespace(api_key=["key"] if api_key is None else api_key)
        asyncio.run(plugin.init_state(SimpleNamespace(vllm_config=config), app.state, args))
        return TestClient(app)

    return serve


def test_without_an_api_key_nothing_is_answered(
    serve: Serve, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    client = serve({"pool": str(pool)}, api_key=[])
    for method, paths in PATHS.items():
        for path in paths:
            answer = client.request(method, f"/v1/dare/{path}", json={"user": "0"})
            assert answer.status_code == 403
            assert "--api-key" in answer.json()["detail"]
    with RetrievalPool.open(pool) as opened:
        assert opened.group_segments("users/0")[0].header.num_documents == 2


@pytest.mark.parametrize("settings", [None, {}])
def test_a_server_without_a_pool_says_so(serve: Serve, settings: dict[str, Any] | None) -> None:
    client = serve(settings)
    bodies = {"drop": {"user": "1"}, "documents": {"documents": [{"id": 1}]}}
    for method, paths in PATHS.items():
        for path in paths:
            answer = client.request(method, f"/v1/dare/{path}", json=bodies.get(path, {}))
            assert answer.status_code == 409
            assert "set dare.pool" in answer.json()["detail"]


def test_status_and_groups(serve: Serve, pool: Path) -> None:
    client = serve({"pool": str(pool)})
    status = client.get("/v1/dare/status").json()
    assert status["pool"]["num_documents"] == 6
    assert status["pool_is_served"]
    assert status["live"] is None
    assert status["settings"]["pool"] == str(pool)
    page = client.get("/v1/dare/groups", params={"limit": 2}).json()
    assert [group["name"] for group in page["groups"]] == ["users/0", "users/1"]
    assert page["groups"][0] == {"name": "users/0", "num_documents": 2, "num_tokens": 26}
    page = client.get("/v1/dare/groups", params={"limit": 2, "after": page["next"]}).json()
    assert ([group["name"] for group in page["groups"]], page["next"]) == (["users/2"], None)
    page = client.get("/v1/dare/groups", params={"prefix": "items/"}).json()
    assert page == {"groups": [], "next": None}


def test_a_pool_that_an_engine_has_not_taken_up_is_not_served(
    serve: Serve, pool: Path, tokenizer: str
) -> None:
    client = serve({"pool": str(pool)})
    assert client.post("/v1/dare/reload").json() == {"is_served": True}
    with RetrievalPool.open(pool):
        documents = [Document(id="1", token_ids=np.array(TEXT, np.int32), group="users/1")]
        build_pool(documents, tokenizer, pool, overwrite=True)
        assert client.post("/v1/dare/reload", json={"wait_seconds": 0}).json() == {"is_served": False}
        assert not client.get("/v1/dare/status").json()["pool_is_served"]
    assert client.post("/v1/dare/reload").json() == {"is_served": True}
    (pool / "manifest.json").write_text("{")
    answer = client.post("/v1/dare/reload")
    assert (answer.status_code, "is damaged" in answer.json()["detail"]) == (409, True)
    assert "is damaged" in client.get("/v1/dare/status").json()["pool"]["error"]


def test_a_users_text_is_dropped_and_the_answer_proves_it(serve: Serve, pool: Path) -> None:
    client = serve({"pool": str(pool)})
    answer = client.post("/v1/dare/drop", json={"user": 4})
    assert answer.status_code == 200
    assert answer.json() == {
        "documents": 2,
        "segments": 2,
        "old_files_removed": 2,
        "old_files_are_read": False,
        "engines_learn": False,
        "engines_have_forgotten": True,
        "runs_of_8_tokens": 6,
        "runs_nobody_else_had": 1,
        "runs_left": 0,
    }
    assert client.post("/v1/dare/drop", json={"group": "users/2"}).json()["documents"] == 4
    answer = client.post("/v1/dare/drop", json={"user": "4"})
    assert (answer.status_code, "has no document of user '4'" in answer.json()["detail"]) == (409, True)
    with RetrievalPool.open(pool) as opened:
        opened.verify()
        assert sorted(opened.groups) == ["users/0", "users/1"]


def test_documents_are_added(serve: Serve, pool: Path) -> None:
    client = serve({"pool": str(pool), "live": {}})
    rows = [{"id": "7", "text": "w1 w2 w3", "group": "users/1"}, {"id": "8", "token_ids": [4, 5, 6]}]
    answer = client.post("/v1/dare/documents", json={"documents": rows})
    assert answer.status_code == 200
    assert (answer.json()["documents"], answer.json()["tokens"]) == (2, 6)
    assert client.get("/v1/dare/status").json()["live"]["num_documents"] == 2
    answer = client.post("/v1/dare/documents", json={"documents": [*rows, {"id": "9"}]})
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("documents.jsonl:3 has neither text nor token_ids")
    assert client.post("/v1/dare/flush").status_code == 409  # no engine learns here
    answer = serve({"pool": str(pool)}).post("/v1/dare/documents", json={"documents": rows})
    assert (answer.status_code, "learns nothing" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("drop", b"{"),
        ("drop", b"[]"),
        ("drop", b"{}"),
        ("drop", b'{"user": "1", "item": "1"}'),
        ("drop", b'{"user": []}'),
        ("drop", b'{"user": true}'),
        ("drop", b'{"user": "1", "wait_seconds": 1e9}'),
        ("drop", b'{"user": "1", "wait_seconds": NaN}'),
        ("drop", b'{"users": "1"}'),
        ("drop", b"\xff\xfe"),
        ("drop", rb'{"user": "a\u0000b"}'),
        ("drop", rb'{"user": "\ud800"}'),
        ("drop", b'{"user": "' + b"x" * 10_001 + b'"}'),
        ("drop", b'{"user": ' + b"9" * 5000 + b"}"),
        ("documents", b'{"documents": []}'),
        ("documents", b'{"documents": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("documents", json.dumps({"documents": [{"id": 1}] * 10_001}).encode()),
        ("reload", b'{"wait_seconds": -1}'),
        ("flush", b'{"wait_seconds": "soon"}'),
    ],
)
def test_bad_bodies_are_the_clients_fault(serve: Serve, pool: Path, path: str, body: bytes) -> None:
    answer = serve({"pool": str(pool), "live": {}}).post(f"/v1/dare/{path}", content=body)
    assert answer.status_code == 400
    assert len(answer.json()["detail"]) < 500


def test_a_group_may_be_a_number(serve: Serve, pool: Path) -> None:
    answer = serve({"pool": str(pool)}).post("/v1/dare/drop", json={"group": 7})
    assert "has no document of the group '7'" in answer.json()["detail"]


def test_a_bad_value_is_named_by_its_field(serve: Serve, pool: Path) -> None:
    answer = serve({"pool": str(pool)}).post("/v1/dare/drop", json={"user": ""})
    assert answer.json()["detail"] == "Bad value for user: String should have at least 1 character."


@pytest.mark.parametrize("user", ["--help", "$(date)\nü☃/", "x" * 10_000])
def test_any_text_is_an_id(serve: Serve, pool: Path, user: str) -> None:
    answer = serve({"pool": str(pool)}).post("/v1/dare/drop", json={"user": user})
    assert answer.status_code == 409
    assert "has no document of user" in answer.json()["detail"]


def test_a_body_that_is_too_large_is_refused(serve: Serve, pool: Path) -> None:
    client = serve({"pool": str(pool), "live": {}})
    answer = client.post("/v1/dare/documents", content=b" " * (64 * 2**20 + 1))
    assert answer.status_code == 413


def test_a_stores_pool_is_changed_in_the_store(
    serve: Serve, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_DARE_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path / 'store'}"
    copy = pool_directory(url)
    copy.parent.mkdir(parents=True)
    pool.rename(copy)
    client = serve({"pool": url, "live": {}})
    assert client.get("/v1/dare/status").json()["pool"]["num_documents"] == 6
    for path, body in (("drop", {"user": "1"}), ("documents", {"documents": [{"id": 1}]})):
        answer = client.post(f"/v1/dare/{path}", json=body)
        assert (answer.status_code, "change it there" in answer.json()["detail"]) == (409, True)
