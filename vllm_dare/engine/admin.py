"""Looking after the pool of a running server: routes under ``/v1/dare`` on vLLM's own server.

vLLM loads them where its environment says so (``VLLM_PLUGINS=vllm_dare,vllm_dare_admin``), and asks for its
API key on every path under ``/v1``. Without an API key they answer nothing but that one is needed.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from vllm import envs

from vllm_dare import __version__
from vllm_dare.config import DareConfig
from vllm_dare.engine import metrics_endpoint
from vllm_dare.engine.admin_command import run_pool_command
from vllm_dare.engine.configured import uses_dare
from vllm_dare.errors import DareError, PoolError
from vllm_dare.pool.drop import wait_for_readers
from vllm_dare.pool.live_store import LIVE_DIRECTORY
from vllm_dare.pool.manifest import Manifest, is_pool, read_manifest
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.summary import GroupSummary, summarize, summarize_group
from vllm_dare.store.cache import pool_directory

_MAX_BODY_BYTES = 64 * 2**20
_MAX_DOCUMENTS = 10_000
_MAX_WAIT_SECONDS = 600.0

Body = TypeVar("Body", bound=BaseModel)
# Without NUL, which no argument of a process can hold.
Name = Annotated[str, Field(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")]
Seconds = Annotated[float, Field(ge=0, le=_MAX_WAIT_SECONDS, allow_inf_nan=False)]


class WaitBody(BaseModel):
    """How long to wait until the engines have followed, in seconds."""

    model_config = ConfigDict(extra="forbid")

    wait_seconds: Seconds = 30.0


class DropBody(WaitBody):
    """Whose text is to go: exactly one of these."""

    user: Name | StrictInt | None = None
    item: Name | StrictInt | None = None
    id: Name | StrictInt | None = None
    group: Name | StrictInt | None = None


class DocumentsBody(BaseModel):
    """Documents, each with the fields that `vllm-dare pool build` reads."""

    model_config = ConfigDict(extra="forbid")

    documents: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=_MAX_DOCUMENTS)]


class GroupsPage(BaseModel):
    """Groups of a pool, by name.

    Attributes:
        groups: up to as many as were asked for.
        next: what to give as ``after`` for the following ones; None if these are the last.
    """

    groups: list[GroupSummary]
    next: str | None


class AdminEndpoints:
    """vLLM's endpoint plugin; see the module."""

    name = "vllm_dare_admin"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes."""
        app.include_router(_router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remember what the server serves from."""
        vllm_config = engine_client.vllm_config  # there is an engine where texts are generated
        state.dare_admin = _Server(
            config=(
                DareConfig.from_additional_config(vllm_config.additional_config)
                if uses_dare(vllm_config)
                else None
            ),
            tokenizer=str(vllm_config.model_config.tokenizer),
            has_key=any(args.api_key or [envs.VLLM_API_KEY]),
        )


class _Server:
    """What the routes know of the server that they belong to.

    Attributes:
        config: its settings; None if it does not use DARE.
        tokenizer: of its model.
        has_key: whether it asks for an API key.
        changing: held while the pool is being changed, as one at a time can.
    """

    def __init__(self, config: DareConfig | None, tokenizer: str, has_key: bool) -> None:
        self.config, self.tokenizer, self.has_key = config, tokenizer, has_key
        self.changing = asyncio.Lock()

    @property
    def pool(self) -> Path:
        """The pool directory; for a store's pool, this machine's copy of it.

        Raises:
            HTTPException: there is none.
        """
        if self.config is None or self.config.pool is None:
            raise HTTPException(409, "This server drafts from no pool: set dare.pool and restart it.")
        return pool_directory(self.config.pool).expanduser()

    @property
    def own_pool(self) -> Path:
        """The pool directory, to be changed.

        Raises:
            HTTPException: there is none, or it is a copy.
        """
        directory = self.pool
        if self.config is not None and isinstance(self.config.pool, str):
            raise HTTPException(
                409, f"The pool comes from the store {self.config.pool}: change it there, see `pool push`."
            )
        return directory

    @property
    def learns(self) -> bool:
        """Whether the engines learn."""
        return self.config is not None and self.config.live is not None


def _server(request: Request) -> _Server:
    server: _Server = request.app.state.dare_admin
    if not server.has_key:
        raise HTTPException(
            403, "These routes need a server with an API key: start it with --api-key, or set VLLM_API_KEY."
        )
    return server


Server = Annotated[_Server, Depends(_server)]
_router = APIRouter(prefix="/v1/dare", tags=["dare"])


@_router.get("/status")
def status(server: Server) -> dict[str, Any]:
    """What is served: settings, the pool and what was learned on disk, and every engine's numbers."""
    live = server.pool / LIVE_DIRECTORY
    return {
        "version": __version__,
        "settings": server.config.model_dump(mode="json") if server.config is not None else None,
        "pool": _summary(server.pool),
        "pool_is_served": wait_for_readers(server.pool, 0.0),
        "live": _summary(live) if server.learns and is_pool(live) else None,
        "engines": metrics_endpoint.numbers_of_engines(),
    }


@_router.get("/groups")
def groups(
    server: Server,
    prefix: str = "",
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> GroupsPage:
    """The groups that have text in the pool, by name, those first that come next after ``after``."""
    manifest: Manifest = _refusing(read_manifest, server.pool)
    names = sorted(name for name in manifest.groups if name.startswith(prefix) and name > after)
    page = [summarize_group(manifest, name) for name in names[:limit]]
    return GroupsPage(groups=page, next=page[-1].name if len(names) > limit else None)


@_router.post("/reload")
async def reload(server: Server, request: Request) -> dict[str, bool]:
    """Wait until every engine drafts from the pool as it is on disk; they look for it every second.

    Answers 409 with the reason if it cannot be used, and {"is_served": false} if time was up.
    """
    body = await _body(request, WaitBody)
    await asyncio.to_thread(_refusing, _check_pool, server.pool)
    is_served = await asyncio.to_thread(wait_for_readers, server.pool, body.wait_seconds)
    if not is_served:
        await asyncio.to_thread(_refusing, _check_content, server.pool)
    return {"is_served": is_served}


@_router.post("/documents")
async def add_documents(server: Server, request: Request) -> Any:
    """Add documents to what the engines have learned; they draft within seconds."""
    body = await _body(request, DocumentsBody)
    pool, config = server.own_pool, server.config
    if config is None or config.live is None:
        raise HTTPException(
            409, "This server learns nothing: set dare.live, or use `vllm-dare pool refresh` on its pool."
        )
    with tempfile.TemporaryDirectory(prefix="vllm-dare-") as folder:
        rows = Path(folder) / "documents.jsonl"
        await asyncio.to_thread(_write_rows, rows, body.documents)
        tokens = str(config.live.max_tokens)
        options = ["--tokens", tokens, "--tokenizer", server.tokenizer, "--json"]
        return await _change(server, "add", str(pool), str(rows), *options, hidden=f"{folder}/")


@_router.post("/drop")
async def drop(server: Server, request: Request) -> Any:
    """Remove a user's, an item's, an id's or a group's text from the pool and from what was learned.

    The answer proves it: ``runs_left`` is how many runs of 8 tokens that nobody else had can still be
    drafted, ``old_files_are_read`` and ``engines_have_forgotten`` say whether all engines have taken it up.
    """
    body = await _body(request, DropBody)
    given = body.model_dump(exclude={"wait_seconds"}, exclude_none=True)
    if len(given) != 1:
        raise HTTPException(400, "Give exactly one of user, item, id and group: whose text is to go.")
    ((kind, value),) = given.items()
    options = [f"--{kind}={value}", f"--wait={body.wait_seconds}", "--json"]
    return await _change(server, "drop", str(server.own_pool), *options)


@_router.post("/flush")
async def flush(server: Server, request: Request) -> dict[str, bool]:
    """Have the engines write down what they have learned, and wait until they have."""
    body = await _body(request, WaitBody)
    await _change(server, "flush", str(server.pool), f"--wait={body.wait_seconds}")
    return {"is_written": True}


async def _change(server: _Server, command: str, *arguments: str, hidden: str = "") -> Any:
    async with server.changing:
        try:
            return await run_pool_command(command, *arguments)
        except PoolError as error:
            raise HTTPException(409, str(error).replace(hidden, "") if hidden else str(error)) from None


def _check_pool(directory: Path) -> None:
    with RetrievalPool.open(directory) as pool:
        pool.check_files()


def _check_content(directory: Path) -> None:
    with RetrievalPool.open(directory) as pool:
        pool.verify_checksums(workers=1)


def _summary(directory: Path) -> dict[str, Any]:
    """What is in a pool directory, or what is wrong with it; engines serve on from what they have mapped."""
    try:
        return summarize(read_manifest(directory)).model_dump(mode="json")
    except DareError as error:
        return {"error": str(error)}


def _refusing(action: Callable[[Path], Any], directory: Path) -> Any:
    try:
        return action(directory)
    except DareError as error:
        raise HTTPException(409, str(error)) from None


async def _body(request: Request, kind: type[Body]) -> Body:
    """The request's JSON; nothing at all means the defaults."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"The body has more than {_MAX_BODY_BYTES:,} bytes: send it in parts.")
    try:
        return kind.model_validate_json(bytes(content) or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        name, *inside = first["loc"] or ("the body",)
        # Where several types are allowed, pydantic puts a name of its own for one of them behind the field's.
        where = ".".join([str(name), *(str(part) for part in inside if isinstance(part, int))])
        raise HTTPException(400, f"Bad value for {where}: {first['msg']}.") from None


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
