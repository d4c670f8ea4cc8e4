"""Several engines on one machine, and one over several processes: data and tensor parallelism."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from vllm_dare import request_args

from .one_process import run_engines
from .server import metrics, running_server, samples

openai = pytest.importorskip("openai")

from .asking import Answer, Ask, ask_all, client_of, send  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

NUM_PROMPTS = 8
MAX_TOKENS = 120
RELAXED = {"dare_preset": "fast"}


@pytest.fixture(scope="module")
def rows(demo_prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return demo_prompts[:NUM_PROMPTS]


@pytest.fixture(scope="module")
def texts(
    demo_model: str,
    demo_pool: Path,
    rows: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[str], list[str]]:
    """What one engine writes, without DARE, and relaxed."""
    from vllm_dare.pool.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(demo_model)
    job = {
        "model": demo_model,
        "prompts": [tokenizer.encode(row["prompt"]).ids for row in rows],
        "params": {"temperature": 0.0, "max_tokens": MAX_TOKENS},
    }
    dare = {"pool": str(demo_pool), "draft_budget": "fixed"}
    relaxed = {"dare": dare, "extra_args": [RELAXED] * NUM_PROMPTS}
    results = run_engines([job, job | relaxed], tmp_path_factory.mktemp("alone"))
    plain, loose = ([tokenizer.decode(ids) for ids in result["outputs"]] for result in results)
    assert plain != loose
    return plain, loose


def asks_of(
    rows: list[dict[str, Any]], xargs: dict[str, Any] | None = None, rank: int | None = None
) -> list[Ask]:
    """The rows' requests, each with its group or with ``xargs``; to one engine if ``rank`` says which."""
    headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
    return [
        Ask(
            "completions",
            row["prompt"],
            {"max_tokens": MAX_TOKENS},
            xargs=request_args(group=row["group"]) if xargs is None else xargs,
            headers=headers,
        )
        for row in rows
    ]


def texts_of(answers: list[Answer]) -> list[str]:
    return [answer.texts[0].strip() for answer in answers]


def by_engine(address: str, name: str, **labels: str) -> list[float]:
    """A metric of each engine, in order of their numbers."""
    found: dict[str, float] = {}
    for sample, given, value in samples(address):
        if sample == name and labels.items() <= given.items():
            found[given["engine"]] = found.get(given["engine"], 0.0) + value
    return [found[engine] for engine in sorted(found)]


def readers(pool: Path) -> list[dict[str, Any]]:
    """Of each process that has the pool mapped, segment file to its `smaps`, those of workers in order."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            maps = process.memory_maps()
        except psutil.Error:
            continue
        segments = {Path(one.path).name: one for one in maps if one.path.startswith(f"{pool}/segments/")}
        if segments:
            found.append(segments)
    return found


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="module")
def learning_pool(demo_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    return Path(shutil.copytree(demo_pool, tmp_path_factory.mktemp("pools") / "pool"))


@pytest.fixture(scope="module")
def two_engines(
    demo_model: str, learning_pool: Path, log: Path, texts: tuple[list[str], list[str]]
) -> Iterator[str]:
    """Two engines that learn, behind two API servers."""
    settings = {"pool": str(learning_pool), "live": {}}
    options = ("--data-parallel-size", "2")
    with running_server(demo_model, settings, log, *options, serve=True) as address:
        yield address


def test_two_engines_write_what_one_does(
    two_engines: str, rows: list[dict[str, Any]], texts: tuple[list[str], list[str]]
) -> None:
    for rank in (0, 1):
        assert texts_of(ask_all(two_engines, asks_of(rows[rank::2], rank=rank))) == [
            text.strip() for text in texts[0][rank::2]
        ]
    assert min(by_engine(two_engines, "vllm_dare_accepted_tokens_total")) > NUM_PROMPTS * MAX_TOKENS / 4
    assert by_engine(two_engines, "vllm_dare_accepted_tokens_total") == by_engine(
        two_engines, "vllm:spec_decode_num_accepted_tokens_total"
    )


def test_each_api_server_shows_both_engines_and_refuses_bad_keys(two_engines: str) -> None:
    for _ in range(8):  # each a connection of its own, which either server may get
        assert len(by_engine(two_engines, "vllm_dare_pool_tokens")) == 2
        with pytest.raises(openai.BadRequestError, match="dare_nonsense"):
            ask_all(two_engines, [Ask("chat", "x", xargs={"dare_nonsense": 1})])


def test_the_engines_share_one_copy_of_the_pool(two_engines: str, learning_pool: Path) -> None:
    engines = readers(learning_pool)
    assert len(engines) == 2
    largest = max((learning_pool / "segments").iterdir(), key=lambda path: path.stat().st_size)
    for segments in engines:
        segment = segments[largest.name]
        assert segment.private_dirty == 0
        assert segment.shared_clean > 0.5 * segment.rss > 0
        assert segment.pss < 0.75 * segment.rss


def test_what_one_engine_learns_drafts_for_the_other(
    two_engines: str, rows: list[dict[str, Any]], texts: tuple[list[str], list[str]]
) -> None:
    ask_all(two_engines, asks_of(rows, rank=0))  # half of them are new to each
    ask_all(two_engines, asks_of(rows[1::2], rank=1))
    written = sum(len(text) > 0 for text in texts[0])
    deadline = time.monotonic() + 60
    while len(tokens := set(by_engine(two_engines, "vllm_dare_live_tokens"))) > 1:
        assert time.monotonic() < deadline, "an engine does not see what the other has learned"
        time.sleep(0.2)
    assert written * MAX_TOKENS / 2 < tokens.pop() <= written * MAX_TOKENS
    before = by_engine(two_engines, "vllm_dare_accepted_tokens_total", source="live")
    answers = ask_all(two_engines, asks_of(rows[::2], rank=1))  # which has never written them
    after = by_engine(two_engines, "vllm_dare_accepted_tokens_total", source="live")
    assert texts_of(answers) == [text.strip() for text in texts[0][::2]]
    assert after[0] == before[0]
    assert after[1] > before[1]


def test_a_client_that_goes_away_is_learned_from_and_leaves_nothing_behind(
    two_engines: str, rows: list[dict[str, Any]]
) -> None:
    before = by_engine(two_engines, "vllm_dare_live_tokens")
    one = Ask(
        "completions",
        "Another text. " + rows[0]["prompt"],
        {"max_tokens": 900, "stream": True},
        {"ignore_eos": True},
        request_args(group="users/new"),
        {"X-data-parallel-rank": "0"},
    )

    async def leave() -> int:
        async with client_of(two_engines) as client:
            stream, read = await send(client, one), 0
            async for _ in stream:
                read += 1
                if read == 20:
                    break
            await stream.close()
            return read

    read = asyncio.run(leave())
    deadline = time.monotonic() + 30
    while metrics(two_engines)["vllm:num_requests_running"]:
        assert time.monotonic() < deadline, "a cancelled request goes on"
        time.sleep(0.05)
    while by_engine(two_engines, "vllm_dare_live_tokens")[0] < before[0] + read:
        assert time.monotonic() < deadline, "what it wrote is not learned"
        time.sleep(0.2)
    assert metrics(two_engines)["vllm_dare_errors_total"] == 0


def test_the_log_of_two_api_servers_says_once_what_is_on(two_engines: str, log: Path) -> None:
    (line,) = [line for line in log.read_text().splitlines() if "DARE:" in line or "vllm-dare" in line]
    assert "learning is on" in line


@pytest.fixture(scope="module")
def two_ranks(
    demo_model: str,
    demo_pool: Path,
    tmp_path_factory: pytest.TempPathFactory,
    texts: tuple[list[str], list[str]],
) -> Iterator[str]:
    """One engine over two tensor-parallel ranks, whose requests may not name groups."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("vLLM's CPU build gives each tensor-parallel rank cores of its own")
    settings = {"pool": str(demo_pool), "draft_budget": "fixed", "allow_groups": False}
    log = tmp_path_factory.mktemp("ranks") / "log.txt"
    # vLLM's own choice gives each rank a NUMA node of its own.
    binding = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[1]}"}
    options = ("--tensor-parallel-size", "2")
    with running_server(demo_model, settings, log, *options, environment=binding) as address:
        yield address


@pytest.mark.parametrize("rule", ["strict", "relaxed"])
def test_two_ranks_write_what_one_does(
    two_ranks: str, rows: list[dict[str, Any]], texts: tuple[list[str], list[str]], rule: str
) -> None:
    before = metrics(two_ranks)
    keys = RELAXED if rule == "relaxed" else {}
    answers = ask_all(two_ranks, asks_of(rows, xargs=keys))
    assert texts_of(answers) == [text.strip() for text in texts[rule == "relaxed"]]
    after = metrics(two_ranks)
    ours, vllms = "vllm_dare_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"
    assert after[ours] - before[ours] == after[vllms] - before[vllms] > NUM_PROMPTS * MAX_TOKENS / 4


def test_one_rank_has_the_pool_open(two_ranks: str, demo_pool: Path) -> None:
    assert len(readers(demo_pool)) == 1


@pytest.mark.parametrize("key", ["dare_group", "dare_user", "dare_item", "dare_history", "dare_attributes"])
@pytest.mark.parametrize("endpoint", ["completions", "chat", "responses"])
def test_requests_may_not_say_whose_text_drafts_where_the_operator_forbids_it(
    two_ranks: str, endpoint: str, key: str
) -> None:
    value = {"dare_history": ["1"], "dare_attributes": ["a=b"]}.get(key, "x")
    with pytest.raises(openai.BadRequestError, match=f"does not let requests set {key}"):
        ask_all(two_ranks, [Ask(endpoint, "x", {"stream": endpoint == "chat"}, xargs={key: value})])
