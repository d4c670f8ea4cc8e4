"""The OpenAI-compatible server with drafts, seen from the real openai client, beside plain vLLM."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vllm_dare import request_args
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import read_documents

from .cases import (
    CASES,
    FAST,
    JSON_CASES,
    JSON_GROUP,
    LOGPROB_CASES,
    LOOSEST,
    OPTIONS,
    SCHEMA,
    json_documents,
)
from .conftest import DEMO
from .server import free_port, metrics, running_server, samples

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from .asking import Answer, Ask, ask, ask_all, client_of, send  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


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
    settings = {"pool": str(pool), "limits": {"top_k": LOOSEST["dare_top_k"]}}
    with running_server(demo_model, settings, log, *options) as address:
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


def test_the_options_of_the_cases_had_an_effect(plain: dict[str, Answer]) -> None:
    """Two servers that ignore them would be equal, too."""
    assert "es" not in plain["stop"].texts[0] and plain["stop"].choices[0].finish == "stop"
    assert plain["stop in output"].texts[0].endswith(" of")
    assert "stories" not in plain["bad words"].texts[0]
    assert plain["min tokens"].num_tokens >= 290
    assert plain["ignore eos"].num_tokens == 400
    assert len(plain["n"].choices) == 3
    assert plain["echo logprobs"].choices[0].logprobs[0][1] is None


@pytest.mark.parametrize("name", LOGPROB_CASES)
def test_relaxed_answers_have_one_log_prob_a_token(address: str, asks: dict[str, Ask], name: str) -> None:
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
    if name != "logprobs of the chosen alone":
        assert max(max(tops.values()) - logprob for _, logprob, tops in written) > 1e-3, "none was relaxed"
    text = "".join(token for token, _, _ in written)
    assert text.strip().startswith(choice.text.strip()[:20]) or "echo" in name


@pytest.mark.parametrize("rule", [{}, FAST, LOOSEST], ids=["strict", "fast", "loosest"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_json_is_what_the_schema_says(
    address: str, asks: dict[str, Ask], rule: dict[str, Any], temperature: float
) -> None:
    """Half of the pool's texts break the schema, and the loosest rule keeps all it may."""
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
    names = [*CASES, *CASES][:64]

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


def complete(address: str, prompt: str, xargs: dict[str, Any] | None = None, **options: Any) -> Any:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=240) as client:
        settings = {"model": "demo", "prompt": prompt, "max_tokens": 200, "temperature": 0, **options}
        return client.completions.create(**settings, extra_body={"vllm_xargs": xargs} if xargs else None)


def test_a_user_and_an_item_are_accepted_as_keys(address: str, demo_prompts: list[dict[str, Any]]) -> None:
    row = demo_prompts[1]
    new = request_args(user="new", history=[1, "i2"], attributes={"genre": ["Horror", "War"], "age": 25})
    keys = ({}, request_args(user=row["user"]), request_args(item="i1"), request_args(user=7), new)
    answers = ask_all(address, [Ask("completions", row["prompt"], xargs=xargs) for xargs in keys])
    assert len({answer.texts[0] for answer in answers}) == 1


def test_another_plugins_keys_are_left_alone(
    address: str, asks: dict[str, Ask], plain: dict[str, Answer]
) -> None:
    (answer,) = ask_all(address, [Ask("completions", asks["completion"].prompt, xargs={"other_key": 1})])
    assert_same(answer, plain["completion"])


def test_what_relaxing_did_comes_with_the_answer(address: str, demo_prompts: list[dict[str, Any]]) -> None:
    row = demo_prompts[5]
    keys = request_args(group=row["group"])
    answer = complete(address, row["prompt"], keys | FAST, temperature=0.8)
    drafts = answer.model_extra["metrics"]["speculative_decoding"]
    assert drafts["dare"]["exact"] + drafts["dare"]["relaxed"] == drafts["num_accepted_draft_tokens"]
    assert answer.model_extra.get("kv_transfer_params") is None
    strict = complete(address, row["prompt"], keys)
    assert "dare" not in strict.model_extra["metrics"]["speculative_decoding"]


def test_metrics_agree_with_vllms_own(address: str, demo_prompts: list[dict[str, Any]]) -> None:
    rows = demo_prompts[:12]
    before = metrics(address)

    def ask_one(number: int) -> Any:
        keys = (request_args(group=rows[number]["group"]), request_args(user=rows[number]["user"]), {})
        return complete(address, rows[number]["prompt"], keys[number % 3] | (FAST if number % 4 == 0 else {}))

    with ThreadPoolExecutor(len(rows)) as clients:
        answers = list(clients.map(ask_one, range(len(rows))))
    after = metrics(address)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    for ours, vllms in (
        ("drafts_total", "num_drafts_total"),
        ("draft_tokens_total", "num_draft_tokens_total"),
        ("group_draft_tokens_total", "num_draft_tokens_total"),
        ("accepted_tokens_total", "num_accepted_tokens_total"),
        ("accepted_tokens_per_position_total", "num_accepted_tokens_per_pos_total"),
        ("group_accepted_tokens_total", "num_accepted_tokens_total"),
    ):
        assert grown[f"vllm_dare_{ours}"] == grown[f"vllm:spec_decode_{vllms}"] > 0, ours
    relaxed = [answer.metrics["speculative_decoding"].get("dare") for answer in answers]
    assert grown["vllm_dare_relaxed_tokens_total"] == sum(one["relaxed"] for one in relaxed if one) > 0
    assert grown["vllm_dare_errors_total"] == 0
    assert grown["vllm_dare_look_up_seconds_count"] > 0
    assert after["vllm_dare_pool_tokens"] > 10_000


@pytest.mark.parametrize(
    ("xargs", "key"),
    [
        ({"dare_grup": "users/1"}, "dare_grup"),
        ({"dare_top_k": 0}, "dare_top_k"),
        ({"dare_preset": "lax"}, "dare_preset"),
        ({"dare_preset": "fast", "dare_verification": "strict"}, "dare_preset"),
        ({"dare_preset": "fast", "dare_max_relaxed": -1}, "dare_max_relaxed"),
        ({"dare_preset": "fast", "dare_top_k": 4001}, "dare_top_k"),  # beyond the operator's limit
        ({"dare_protect": ["letters"]}, "dare_protect"),
        ({"dare_min_prob": 1.5}, "dare_min_prob"),
        ({"dare_verification": "sloppy"}, "dare_verification"),
        ({"dare_user": ["u1"]}, "dare_user"),
        ({"dare_history": "u1,u2"}, "dare_history"),
        ({"dare_attributes": ["Horror"]}, "dare_attributes"),
        ({"dare_group": ""}, "dare_group"),
    ],
    ids=str,
)
def test_bad_keys_are_the_clients_error(address: str, xargs: dict[str, Any], key: str) -> None:
    with pytest.raises(openai.BadRequestError, match=key):
        ask_all(address, [Ask("completions", "x", xargs=xargs)])


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


@pytest.mark.parametrize("extra", [{"logit_bias": {"5": 3}}, {"min_p": 0.1}], ids=str)
def test_what_vllm_cannot_do_with_drafts_is_refused(address: str, extra: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="min_p and logit_bias"):
        ask_all(address, [Ask("completions", "x", {"temperature": 1}, extra)])


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
    assert asyncio.run(leave(address, long_asks(asks))) > 8
    assert_all_ended(address)
    (answer,) = ask_all(address, [asks["completion"]])
    assert_same(answer, plain["completion"])


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
    with pytest.raises(openai.AuthenticationError):
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
    for part in (
        f"the pool {pool} (",
        " tokens, ",
        " groups)",
        "budget auto",
        "is strict",
        "learning is off",
    ):
        assert part in first
    assert sum('"POST /v1/' in line for line in lines) > 50
