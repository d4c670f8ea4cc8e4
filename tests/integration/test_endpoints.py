"""Every endpoint and option of the server, with DARE as without: what plain vLLM answers is asked first."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vllm_dare import request_args
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document, read_documents

from .conftest import DEMO
from .server import free_port, metrics, running_server, samples

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from .asking import Answer, Ask, ask, ask_all, client_of, send  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

SCHEMA = {
    "type": "object",
    "properties": {
        "genre": {"enum": ["mystery", "horror", "romance"]},
        "liked": {"type": "boolean"},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "why": {"type": "string", "maxLength": 40},
    },
    "required": ["genre", "liked", "stars", "why"],
    "additionalProperties": False,
}
JSON_GROUP = "users/json"
# Every draft that the grammar lets through is kept.
LOOSEST = {"dare_preset": "fast", "dare_top_k": 4000, "dare_min_prob": 0.0, "dare_min_ratio": 0.0}
FAST = {"dare_preset": "fast"}
CHAT_SCHEMA = {"type": "json_schema", "json_schema": {"name": "taste", "schema": SCHEMA, "strict": True}}
RESPONSES_SCHEMA = {"format": {"type": "json_schema", "name": "taste", "schema": SCHEMA, "strict": True}}
RESPONSES_LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}

# What is asked: endpoint, the client's arguments, further fields.
PLAIN_CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "completion": ("completions", {}, {}),
    "completion stream": ("completions", {"stream": True}, {}),
    "chat": ("chat", {}, {}),
    "chat stream": ("chat", {"stream": True}, {}),
    "responses": ("responses", {}, {}),
    "responses stream": ("responses", {"stream": True}, {}),
    # Sampled, but of one token: several samples of a greedy text are none.
    "n": ("completions", {"n": 3, "temperature": 1}, {"top_k": 1}),
    "chat n": ("chat", {"n": 2, "temperature": 1}, {"top_k": 1}),
    "n stream": ("completions", {"n": 2, "temperature": 1, "stream": True}, {"top_k": 1}),
    "stop": ("completions", {"stop": ["es", ". "]}, {}),
    "stop in output": ("completions", {"stop": [" of"]}, {"include_stop_str_in_output": True}),
    "stop stream": ("chat", {"stop": ["ing "], "stream": True}, {}),
    "echo": ("completions", {"echo": True, "max_tokens": 20}, {}),
    "min tokens": ("completions", {"max_tokens": 300}, {"min_tokens": 290}),
    "penalties": ("completions", {"presence_penalty": 0.8, "frequency_penalty": 0.6}, {}),
    "repetition penalty": ("chat", {}, {"repetition_penalty": 1.3}),
    "bad words": ("completions", {}, {"bad_words": ["stories", "love"]}),
    "allowed tokens": ("completions", {"max_tokens": 20}, {"allowed_token_ids": [5, 6, 7, 8, 9, 260, 300]}),
    "one token": ("completions", {"max_tokens": 1}, {}),
    "ignore eos": ("completions", {"max_tokens": 400}, {"ignore_eos": True}),
}
LOGPROB_CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "logprobs": ("completions", {"logprobs": 3}, {}),
    "logprobs stream": ("completions", {"logprobs": 2, "stream": True}, {}),
    "logprobs of the chosen alone": ("completions", {"logprobs": 0}, {}),
    "chat logprobs": ("chat", {"logprobs": True, "top_logprobs": 3}, {}),
    "chat logprobs stream": ("chat", {"logprobs": True, "top_logprobs": 2, "stream": True}, {}),
    "responses logprobs": ("responses", RESPONSES_LOGPROBS, {}),
    "responses logprobs stream": ("responses", RESPONSES_LOGPROBS | {"stream": True}, {}),
    "logprobs with penalties": ("completions", {"logprobs": 2, "frequency_penalty": 0.7}, {}),
    "logprobs with stop": ("completions", {"logprobs": 1, "stop": ["ies"]}, {}),
    "echo logprobs": ("completions", {"echo": True, "logprobs": 1, "max_tokens": 20}, {}),
}
JSON_CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "chat response_format": ("chat", {"response_format": CHAT_SCHEMA}, {}),
    "chat response_format stream": ("chat", {"response_format": CHAT_SCHEMA, "stream": True}, {}),
    "chat structured outputs": ("chat", {}, {"structured_outputs": {"json": SCHEMA}}),
    "completion structured outputs": ("completions", {}, {"structured_outputs": {"json": SCHEMA}}),
    "completion response_format": ("completions", {}, {"response_format": CHAT_SCHEMA}),
    "responses text format": ("responses", {"text": RESPONSES_SCHEMA}, {}),
    "responses text format stream": ("responses", {"text": RESPONSES_SCHEMA, "stream": True}, {}),
}
CASES = PLAIN_CASES | LOGPROB_CASES | JSON_CASES
# Else the demo's model, which knows no JSON, may go on with blanks for ever.
OPTIONS = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')


def json_documents() -> Iterator[Document]:
    """Texts that begin as the schema asks, and half of which break it sooner or later."""
    for number in range(40):
        good = {
            "genre": ("mystery", "horror", "romance")[number % 3],
            "liked": number % 2 == 0,
            "stars": number % 5 + 1,
            "why": "clever thefts and sealed rooms",
        }
        broken = ({"genre": "war", "x": 1}, good | {"stars": 77}, good | {"why": 5}, good | {"more": [1, 2]})
        row = good if number % 2 else broken[number // 2 % 4]
        yield Document(id=f"j{number}", text=json.dumps(row, separators=(",", ":")), group=JSON_GROUP)


@pytest.fixture(scope="module")
def pool(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's pool, and a group of JSON."""
    output = tmp_path_factory.mktemp("pools") / "pool"
    build_pool([*read_documents([DEMO / "documents.jsonl"]), *json_documents()], demo_model, output)
    return output


@pytest.fixture(scope="module")
def asks(demo_prompts: list[dict[str, Any]]) -> dict[str, Ask]:
    """Every case with a prompt of its own, and the group of that prompt."""
    found = {}
    for row, (name, (endpoint, options, extra)) in zip(demo_prompts, CASES.items(), strict=False):
        group = JSON_GROUP if name in JSON_CASES else row["group"]
        found[name] = Ask(endpoint, row["prompt"], options, extra, request_args(group=group))
    assert len(found) == len(CASES)
    return found


@pytest.fixture(scope="module")
def plain(
    demo_model: str, asks: dict[str, Ask], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Answer]:
    """What vLLM without DARE answers to every case."""
    log = tmp_path_factory.mktemp("plain") / "log.txt"
    with running_server(demo_model, None, log, *OPTIONS) as address:
        return dict(zip(asks, ask_all(address, list(asks.values())), strict=True))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="module")
def address(demo_model: str, pool: Path, log: Path, plain: dict[str, Answer]) -> Iterator[str]:
    """A server with DARE, once the plain one has ended."""
    options = (*OPTIONS, "--per-request-spec-decode-metrics", "summary")
    with running_server(demo_model, {"pool": str(pool)}, log, *options) as address:
        yield address


def relaxed(one: Ask, rule: dict[str, Any] = FAST) -> Ask:
    return Ask(one.endpoint, one.prompt, one.options, one.extra, one.xargs | rule)


def assert_same(got: Answer, expected: Answer) -> None:
    """Equal but for rounding, and for what depends on how many tokens a step writes."""
    assert got.num_tokens == expected.num_tokens
    assert len(got.choices) == len(expected.choices)
    for choice, other in zip(got.choices, expected.choices, strict=True):
        assert (choice.text, choice.finish) == (other.text, other.finish)
        assert (choice.logprobs is None) == (other.logprobs is None)
        for found, wanted in zip(choice.logprobs or [], other.logprobs or [], strict=True):
            assert found[0] == wanted[0]
            assert found[1] == pytest.approx(wanted[1], abs=1e-3)
            assert_same_tops(found[2], wanted[2])


def assert_same_tops(got: dict[str, float] | None, expected: dict[str, float] | None) -> None:
    """The same but for the last of them, which of two equals may be either."""
    assert (got is None) == (expected is None)
    if got is not None and expected is not None:
        assert sorted(got.values()) == pytest.approx(sorted(expected.values()), abs=1e-3)
        for token in got.keys() & expected.keys():
            assert got[token] == pytest.approx(expected[token], abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_strict_answers_are_plain_vllms(
    address: str, asks: dict[str, Ask], plain: dict[str, Answer], name: str
) -> None:
    before = metrics(address)
    (answer,) = ask_all(address, [asks[name]])
    assert_same(answer, plain[name])
    grown = metrics(address)["vllm_dare_accepted_tokens_total"] - before["vllm_dare_accepted_tokens_total"]
    if answer.num_tokens > 1 and name not in {"allowed tokens", "one token"}:
        assert grown > 0, "nothing was drafted"
    if asks[name].options.get("stream"):
        assert answer.num_chunks < plain[name].num_chunks, "several tokens should have come in one step"


def test_the_cases_differ_from_each_other(plain: dict[str, Answer]) -> None:
    """The options had an effect: without this, two servers that ignore them would be equal, too."""
    assert "es" not in plain["stop"].texts[0] and plain["stop"].choices[0].finish == "stop"
    assert plain["stop in output"].texts[0].endswith(" of")
    assert "stories" not in plain["bad words"].texts[0]
    assert plain["min tokens"].num_tokens >= 290
    assert plain["ignore eos"].num_tokens == 400
    assert len(plain["n"].choices) == 3
    assert plain["echo logprobs"].choices[0].logprobs[0][1] is None


@pytest.mark.parametrize("name", LOGPROB_CASES)
def test_relaxed_answers_have_one_log_prob_a_token(
    address: str, asks: dict[str, Ask], name: str
) -> None:
    (answer,) = ask_all(address, [relaxed(asks[name], LOOSEST)])
    (choice,) = answer.choices
    assert choice.logprobs is not None
    prompt = 0 if "echo" not in name else len(choice.logprobs) - answer.num_tokens
    written = choice.logprobs[prompt:]
    assert len(written) == answer.num_tokens
    for _, logprob, tops in written:
        assert logprob is not None and logprob <= 0
        if tops:
            assert max(tops.values()) >= logprob - 1e-5
    if tops := [one[2] for one in written if one[2]]:
        given_up = [max(top.values()) - one[1] for one, top in zip(written, tops, strict=True)]
        assert max(given_up) > 1e-3, "no token was relaxed"
    text = "".join(token for token, _, _ in written)
    assert text.strip().startswith(choice.text.strip()[:20]) or "echo" in name


@pytest.mark.parametrize("rule", [{}, FAST, LOOSEST], ids=["strict", "fast", "loosest"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_json_is_what_the_schema_says(
    address: str, asks: dict[str, Ask], rule: dict[str, Any], temperature: float
) -> None:
    """Whatever is drafted: half of the pool's texts break the schema, and the loosest rule keeps all it may."""
    cases = [asks[name] for name in JSON_CASES]
    options = {"temperature": temperature}
    many = [
        Ask(one.endpoint, one.prompt, one.options | options, one.extra, one.xargs | rule) for one in cases
    ] * 3
    before = metrics(address)
    answers = ask_all(address, many)
    for answer in answers:
        assert answer.choices[0].finish in {"stop", "completed"}
        jsonschema.validate(json.loads(answer.texts[0]), SCHEMA)
    after = metrics(address)
    assert after["vllm_dare_accepted_tokens_total"] > before["vllm_dare_accepted_tokens_total"]
    if rule is LOOSEST:
        assert after["vllm_dare_relaxed_tokens_total"] > before["vllm_dare_relaxed_tokens_total"]


@pytest.mark.parametrize(
    "constraint",
    [{"choice": ["mystery", "horror"]}, {"regex": r"[a-f]{3}-[0-9]{2}"}, {"json_object": True}],
    ids=lambda constraint: next(iter(constraint)),
)
def test_other_grammars_hold_under_the_loosest_rule(
    address: str, asks: dict[str, Ask], constraint: dict[str, Any]
) -> None:
    import re

    one = Ask("completions", asks["completion"].prompt, {}, {"structured_outputs": constraint})
    for rule in ({}, LOOSEST):
        keys = request_args(group=JSON_GROUP) | rule
        (answer,) = ask_all(address, [Ask(one.endpoint, one.prompt, one.options, one.extra, keys)])
        (text,) = answer.texts
        if "choice" in constraint:
            assert text in constraint["choice"]
        elif "regex" in constraint:
            assert re.fullmatch(constraint["regex"], text)
        elif answer.choices[0].finish == "stop":
            json.loads(text)


def test_relaxed_requests_keep_what_else_was_asked(address: str, asks: dict[str, Ask]) -> None:
    names = ("stop", "stop in output", "stop stream", "bad words", "min tokens", "ignore eos", "n", "chat n")
    answers = dict(zip(names, ask_all(address, [relaxed(asks[name]) for name in names]), strict=True))
    for text in answers["stop"].texts:
        assert "es" not in text and ". " not in text
    for name, end in (("stop in output", " of"), ("stop stream", "ing ")):
        (choice,) = answers[name].choices
        assert choice.finish == "length" or choice.text.endswith(end) == (name == "stop in output")
    assert not {"stories", "love"} & set(answers["bad words"].texts[0].split())
    assert answers["min tokens"].num_tokens >= 290
    assert answers["ignore eos"].num_tokens == 400
    assert [len(answers[name].choices) for name in ("n", "chat n")] == [3, 2]


@pytest.mark.parametrize("rule", [{}, FAST], ids=["strict", "relaxed"])
def test_seeded_samples_differ_from_each_other_and_repeat_themselves(
    address: str, asks: dict[str, Ask], rule: dict[str, Any]
) -> None:
    one = relaxed(asks["completion"], rule)
    one = Ask(one.endpoint, one.prompt, {"n": 3, "seed": 11, "temperature": 0.9}, {}, one.xargs)
    first, second = (ask_all(address, [one])[0] for _ in range(2))
    assert first.texts == second.texts
    assert len(set(first.texts)) == 3


def test_mixed_groups_and_rules_in_flight_together(
    address: str, asks: dict[str, Ask], plain: dict[str, Answer]
) -> None:
    """64 clients: every endpoint and option, with right, wrong and no groups; every third request relaxed."""
    names = list(islice([name for _ in range(2) for name in CASES], 64))

    def keys(number: int) -> dict[str, Any]:
        choices = (asks[names[number]].xargs, {}, {"dare_group": "nobody"}, {"dare_user": "new"})
        return choices[number % 4] | (FAST if number % 3 == 2 else {})

    many = [
        Ask(asks[name].endpoint, asks[name].prompt, asks[name].options, asks[name].extra, keys(number))
        for number, name in enumerate(names)
    ]
    before = metrics(address)
    answers = ask_all(address, many)
    for number, (name, answer) in enumerate(zip(names, answers, strict=True)):
        if number % 3 != 2:
            assert_same(answer, plain[name])
        elif name in JSON_CASES:
            jsonschema.validate(json.loads(answer.texts[0]), SCHEMA)
    after = metrics(address)
    assert after["vllm_dare_relaxed_tokens_total"] > before["vllm_dare_relaxed_tokens_total"]
    assert after["vllm_dare_errors_total"] == 0


def test_a_list_of_prompts_is_a_batch_under_one_group(address: str, asks: dict[str, Ask]) -> None:
    names = ("completion", "n", "penalties")
    prompts = [str(asks[name].prompt) for name in names]
    alone = ask_all(address, [Ask("completions", prompt) for prompt in prompts])
    (together,) = ask_all(address, [Ask("completions", prompts, xargs=asks["completion"].xargs)])
    assert together.texts == [answer.texts[0] for answer in alone]


BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["x", "y"], "max_tokens": 4},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4},
    "/v1/responses": {"input": "x", "max_output_tokens": 4},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "x"}]] * 2, "max_tokens": 4},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", BODIES)
def test_every_endpoint_takes_the_keys_and_refuses_bad_ones(address: str, route: str, stream: bool) -> None:
    body = {"model": "demo", "temperature": 0, **BODIES[route]}
    if stream and "batch" not in route:
        body["stream"] = True
    for xargs, key in (
        ({"dare_grup": "a"}, "dare_grup"),
        ({"dare_preset": "lax"}, "dare_preset"),
        ({"dare_top_k": 0, "dare_preset": "fast"}, "dare_top_k"),
        ({"dare_user": ["a"]}, "dare_user"),
    ):
        answer = httpx.post(f"{address}{route}", json=body | {"vllm_xargs": xargs}, timeout=60)
        assert answer.status_code == 400, answer.text
        assert key in answer.json()["error"]["message"]
    keys = request_args(group="users/mystery-fans", preset="careful")
    answer = httpx.post(f"{address}{route}", json=body | {"vllm_xargs": keys}, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("options", [{"logit_bias": {"5": 3}}, {"min_p": 0.1}], ids=str)
def test_what_vllm_cannot_do_with_drafts_is_refused(address: str, options: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="min_p and logit_bias"):
        ask_all(address, [Ask("completions", "x", {}, options)])


def running(address: str) -> float:
    return sum(metrics(address)[f"vllm:num_requests_{state}"] for state in ("running", "waiting"))


async def leave(address: str, asks: list[Ask], api_key: str = "none") -> int:
    """Leave while the answer comes: streams after their first part, others after half a second."""

    async def begin(client: Any, one: Ask) -> int:
        if not one.options.get("stream"):
            with suppress(TimeoutError):
                await asyncio.wait_for(ask(client, one), 0.5)
                return 0
            return 1
        stream = await send(client, one)
        async for _ in stream:
            break
        await stream.close()
        return 1

    async with client_of(address, api_key) as client:
        return sum(await asyncio.gather(*[begin(client, one) for one in asks]))


def assert_all_ended(address: str) -> None:
    deadline = time.monotonic() + 30
    while running(address):
        assert time.monotonic() < deadline, "a cancelled request goes on"
        time.sleep(0.05)


LONG: dict[str, dict[str, Any]] = {
    "completions": {"max_tokens": 900},
    "chat": {"max_tokens": 900},
    "responses": {"max_output_tokens": 900},
}


def long_asks(asks: dict[str, Ask]) -> list[Ask]:
    """Long texts, streamed and not, of every endpoint; half of them relaxed."""
    return [
        Ask(
            endpoint,
            asks["completion"].prompt,
            LONG[endpoint] | {"stream": stream},
            {"ignore_eos": True},
            asks["completion"].xargs | rule,
        )
        for endpoint in LONG
        for stream in (True, False)
        for rule in ({}, FAST)
    ]


def test_clients_that_go_away_leave_nothing_behind(
    address: str, asks: dict[str, Ask], plain: dict[str, Answer]
) -> None:
    before = metrics(address)["vllm:request_success_total"]
    assert asyncio.run(leave(address, long_asks(asks))) > 8
    assert_all_ended(address)
    aborted = [
        value for name, labels, value in samples(address)
        if name == "vllm:request_success_total" and labels["finished_reason"] == "abort"
    ]
    assert sum(aborted) > 8
    assert metrics(address)["vllm:request_success_total"] > before
    (answer,) = ask_all(address, [asks["completion"]])
    assert_same(answer, plain["completion"])
    assert metrics(address)["vllm:kv_cache_usage_perc"] == 0


KEYS = {"key-a": "users/mystery-fans", "key-b": JSON_GROUP}


@pytest.fixture(scope="module")
def gateway(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example, as its docstring says to start it."""
    tenants = tmp_path_factory.mktemp("gateway") / "tenants.json"
    tenants.write_text(json.dumps({sha256(key.encode()).hexdigest(): group for key, group in KEYS.items()}))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(DEMO.parent), "--factory"]
    process = subprocess.Popen(
        [*command, "gateway:from_environment", "--port", str(port)],
        env=os.environ | {"TENANTS": str(tenants), "UPSTREAM": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    gateway = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            with suppress(httpx.TransportError):
                httpx.get(gateway)
                break
            time.sleep(0.1)
        yield gateway
    finally:
        process.terminate()
        process.wait(30)


def drafted_by_group(address: str) -> dict[str, float]:
    return {
        labels["group"]: value
        for name, labels, value in samples(address)
        if name == "vllm_dare_group_draft_tokens_total"
    }


@pytest.mark.parametrize("name", ["completion", "completion stream", "chat", "chat stream"])
@pytest.mark.parametrize("key", KEYS)
def test_behind_the_gateway_the_key_says_whose_text_drafts(
    address: str, gateway: str, asks: dict[str, Ask], plain: dict[str, Answer], name: str, key: str
) -> None:
    before = drafted_by_group(address)
    wanted = relaxed(asks[name], {"dare_group": "users/horror-fans", "dare_nonsense": 1})
    (answer,) = ask_all(gateway, [wanted], api_key=key)
    assert_same(answer, plain[name])
    after = drafted_by_group(address)
    assert {group for group in after if after[group] > before.get(group, 0)} == {KEYS[key]}


def test_the_gateway_turns_strangers_away_and_passes_errors_on(gateway: str, asks: dict[str, Ask]) -> None:
    with pytest.raises(openai.AuthenticationError, match="not known"):
        ask_all(gateway, [asks["completion"]], api_key="key-c")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask_all(gateway, [Ask("completions", "x", {"temperature": -1})], api_key="key-a")


def test_a_client_of_the_gateway_that_goes_away_ends_its_request(
    address: str, gateway: str, asks: dict[str, Ask]
) -> None:
    streams = [one for one in long_asks(asks) if one.options["stream"] and one.endpoint != "responses"]
    assert asyncio.run(leave(gateway, streams, api_key="key-a")) == len(streams)
    assert_all_ended(address)


def test_the_log_says_once_what_is_on(address: str, log: Path, pool: Path) -> None:
    """After all of the above: one line at the start, and none for a request."""
    lines = log.read_text().splitlines()
    (first,) = [line for line in lines if "DARE:" in line or "vllm-dare" in line]
    for part in (f"the pool {pool} (", " tokens, ", " groups)", "budget auto", "is strict", "learning is off"):
        assert part in first
    assert sum('"POST /v1/' in line for line in lines) > 50
