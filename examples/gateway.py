"""A gateway before the server: the key that a client shows says whose text drafts, not the client.

TENANTS names a JSON file that maps the SHA-256 of each API key to the tenant's group, UPSTREAM the server:

    printf '%s' "$KEY" | sha256sum     # for tenants.json: {"6b86b273...": "tenants/a"}
    TENANTS=tenants.json UPSTREAM=http://127.0.0.1:8000 \\
        .venv/bin/python -m uvicorn --app-dir examples --factory gateway:from_environment --port 8080

Build the pool with `--no-global`, else everybody's text drafts for everybody. Only the two routes below lead
to the server: others of vLLM's take sampling parameters, too, or steer the engine.
"""

import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

ROUTES = ("/v1/completions", "/v1/chat/completions")


def make_app(tenants: Mapping[str, str], upstream: httpx.AsyncClient) -> FastAPI:
    """The gateway.

    Args:
        tenants: SHA-256 of an API key, in hexadecimal, to the group of its tenant.
        upstream: reaches the server.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def forward(request: Request) -> StreamingResponse:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        group = tenants.get(hashlib.sha256(key.encode()).hexdigest())
        if group is None:
            raise HTTPException(401, "This API key is not known.")
        body = for_tenant(await request.body(), group)
        answer = await upstream.send(upstream.build_request("POST", request.url.path, json=body), stream=True)
        kind = answer.headers.get("content-type", "application/json")
        return StreamingResponse(_content(answer), answer.status_code, media_type=kind)

    for route in ROUTES:
        app.post(route)(forward)
    return app


def for_tenant(content: bytes, group: str) -> dict[str, Any]:
    """A request's body with the tenant's group, without what the client said of drafts.

    Raises:
        HTTPException: 400, it is not an object, or its `vllm_xargs` are none.
    """
    try:
        body = json.loads(content)
        given = body.get("vllm_xargs") or {}
        others = {name: value for name, value in given.items() if not name.startswith("dare_")}
    except (ValueError, AttributeError, RecursionError):
        raise HTTPException(400, "The body, and vllm_xargs in it, must be JSON objects.") from None
    # The salt keeps tenants from telling by timing whose prompts are in vLLM's own prefix cache; it may not
    # have all characters that a group may.
    salt = hashlib.sha256(group.encode()).hexdigest()
    return {**body, "vllm_xargs": {**others, "dare_group": group}, "cache_salt": salt}


async def _content(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_bytes():
            yield part
    finally:  # a client that goes away ends its request on the server
        await answer.aclose()


def from_environment() -> FastAPI:
    """The gateway that TENANTS and UPSTREAM describe."""
    tenants = json.loads(Path(os.environ["TENANTS"]).read_text())
    return make_app(tenants, httpx.AsyncClient(base_url=os.environ["UPSTREAM"], timeout=None))
