"""Looking after the pool of a real server that learns, while clients keep it busy."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import read_documents
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.request import request_args

from .conftest import DEMO, read_rows
from .server import metrics, running_server

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.filterwarnings("default")

KEY = "a-secret"
RUN = 8


@pytest.fixture(scope="module")
def pool(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pools") / "pool"
    build_pool(read_documents([DEMO / "documents.jsonl"]), demo_model, output)
    return output


@pytest.fixture(scope="module")
def address(demo_model: str, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    settings = {"pool": str(pool), "draft_budget": "fixed", "live": {}}
    plugins = {"VLLM_PLUGINS": "vllm_dare,vllm_dare_admin", "VLLM_API_KEY": KEY}
    with running_server(demo_model, settings, log, environment=plugins) as address:
        yield address


@pytest.fixture(scope="module")
def admin(address: str) -> Iterator[Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{address}/v1/dare/", headers=headers, timeout=180) as client:
        yield client


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def write(client: Any, prompt: str, **keys: Any) -> str:
    answer = client.completions.create(
        model="demo",
        prompt=prompt,
        max_tokens=120,
        temperature=0,
        extra_body={"vllm_xargs": request_args(**keys)},
    )
    return str(answer.choices[0].text)


@contextmanager
def load(client: Any, rows: list[dict[str, Any]]) -> Iterator[list[Exception]]:
    """Keep four clients asking until the block ends; gives the errors that they met."""
    over, errors = threading.Event(), []

    def ask(number: int) -> None:
        while not over.is_set():
            row = rows[number % len(rows)]
            number += 4
            try:
                write(client, row["prompt"], group=row["group"])
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        over.set()
        for thread in threads:
            thread.join()


def documents(directory: Path) -> list[list[int]]:
    with RetrievalPool.open(directory) as pool:
        names = [name for name in pool.manifest.segments]
        segments = [pool._segment(name) for name in names]
        return [one.tolist() for segment in segments for one in segment.documents()]


def runs(texts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(one[i : i + RUN]) for one in texts for i in range(len(one) - RUN + 1)}


def is_in_a_file(directory: Path, run: tuple[int, ...]) -> bool:
    wanted = np.array(run, np.int32).tobytes()
    return any(wanted in path.read_bytes() for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", [None, "another"])
def test_without_the_servers_key_nothing_is_answered(address: str, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    for method, path in (("GET", "status"), ("GET", "groups"), ("POST", "drop"), ("POST", "documents")):
        answer = httpx.request(method, f"{address}/v1/dare/{path}", headers=headers, json={"user": "1"})
        assert answer.status_code == 401


def test_a_users_text_is_dropped_from_everywhere_under_load(
    address: str, admin: Any, client: Any, pool: Path, demo_prompts: list[dict[str, Any]]
) -> None:
    prompts = read_rows(DEMO / "item_prompts.jsonl", 2)
    own = [write(client, row["prompt"], user="the-one", group="users/new") for row in prompts]
    assert all(own)
    with load(client, demo_prompts[:8]) as errors:
        assert admin.post("flush").json() == {"is_written": True}
        theirs = [one for one in documents(pool / "live") if one]
        before = documents(pool)
        answer = admin.post("drop", json={"user": "the-one"})
        assert answer.status_code == 200, answer.text
        figures = answer.json()
    assert not errors
    assert figures["documents"] == 2 * len(prompts)
    assert figures["engines_learn"]
    assert figures["engines_have_forgotten"]
    assert not figures["old_files_are_read"]
    assert figures["runs_left"] == 0
    left = documents(pool / "live")
    gone = runs(theirs) - runs(left) - runs(before)
    assert figures["runs_nobody_else_had"] == len(gone) > 10
    assert not any(is_in_a_file(pool, run) for run in gone)
    status = admin.get("status").json()
    assert status["engines"]["0"]["errors"] == {}


def test_documents_are_added_and_draft(
    address: str, admin: Any, client: Any, demo_prompts: list[dict[str, Any]]
) -> None:
    row = read_rows(DEMO / "item_prompts.jsonl", 3)[2]
    text = write(client, row["prompt"])
    rows = [{"id": f"new-{number}", "text": text, "group": "items/new"} for number in range(3)]
    answer = admin.post("documents", json={"documents": rows})
    assert answer.status_code == 200, answer.text
    assert answer.json()["documents"] == 1  # the same text counts once
    assert answer.json()["engines_learn"]
    assert admin.post("flush").status_code == 200  # since when every engine has looked
    before = admin.get("status").json()["engines"]["0"]["accepted_tokens"].get("live", 0)
    assert write(client, row["prompt"], group="items/new") == text
    after = admin.get("status").json()["engines"]["0"]["accepted_tokens"]["live"]
    assert after > before + 20


def test_a_group_is_dropped_and_a_newer_pool_is_waited_for(
    demo_model: str, address: str, admin: Any, client: Any, pool: Path, demo_prompts: list[dict[str, Any]]
) -> None:
    name = admin.get("groups", params={"limit": 1}).json()["groups"][0]["name"]
    with load(client, demo_prompts[:8]) as errors:
        answer = admin.post("drop", json={"group": name})
        assert (answer.status_code, answer.json()["runs_left"]) == (200, 0)
        assert not answer.json()["old_files_are_read"]
        assert name not in [group["name"] for group in admin.get("groups").json()["groups"]]
        build_pool(read_documents([DEMO / "documents.jsonl"]), demo_model, pool, overwrite=True)
        assert admin.post("reload").json() == {"is_served": True}
    assert not errors
    assert metrics(address)["vllm_dare_pool_reloads_total"] == 2  # drop of the user has changed `live` only
    assert name in [group["name"] for group in admin.get("groups").json()["groups"]]
