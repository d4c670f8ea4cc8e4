"""The OpenAI-compatible server with drafts, seen from the real openai client."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vllm_dare import request_args

from .server import metrics, running_server

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.filterwarnings("default")

SCHEMA = {
    "type": "object",
    "properties": {"genre": {"enum": ["mystery", "horror"]}, "liked": {"type": "boolean"}},
    "required": ["genre", "liked"],
    "additionalProperties": False,
}
RELAXED = {"dare_preset": "fast"}


@pytest.fixture(scope="module")
def address(demo_model: str, demo_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # Else the demo's model, which knows no JSON, may go on with blanks for ever.
    options = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
    options += ("--per-request-spec-decode-metrics", "summary")
    settings = {"pool": str(demo_pool), "limits": {"top_k": 8}}
    with running_server(demo_model, settings, log, *options) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def complete(client: Any, prompt: str, xargs: dict[str, Any] | None = None, **options: Any) -> Any:
    settings = {"model": "demo", "prompt": prompt, "max_tokens": 200, "temperature": 0, **options}
    return client.completions.create(**settings, extra_body={"vllm_xargs": xargs} if xargs else None)


def text_of(client: Any, prompt: str, xargs: dict[str, Any] | None = None, **options: Any) -> str:
    return str(complete(client, prompt, xargs, **options).choices[0].text)


def keys_of(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A mix of what clients may say: a group, a user, nothing, a group that does not exist."""
    choices = (request_args(group=row["group"]), request_args(user=row["user"]), {}, {"dare_group": "none"})
    return choices[number % 4]


def test_a_completion_with_a_group_uses_the_pool_and_changes_nothing(
    client: Any, address: str, demo_prompts: list[dict[str, Any]]
) -> None:
    row = demo_prompts[0]
    before = metrics(address)
    with_group = complete(client, row["prompt"], request_args(group=row["group"]))
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    assert metrics(address)[accepted] - before[accepted] > with_group.usage.completion_tokens / 2
    assert len(with_group.choices[0].text) > 100
    assert with_group.choices[0].text == text_of(client, row["prompt"])


def test_a_user_and_an_item_are_accepted_as_keys(client: Any, demo_prompts: list[dict[str, Any]]) -> None:
    row = demo_prompts[1]
    expected = text_of(client, row["prompt"])
    new = request_args(user="new", history=[1, "i2"], attributes={"genre": ["Horror", "War"], "age": 25})
    for xargs in (request_args(user=row["user"]), request_args(item="i1"), request_args(user=7), new):
        assert text_of(client, row["prompt"], xargs) == expected


def test_chat(client: Any, demo_prompts: list[dict[str, Any]]) -> None:
    row = demo_prompts[2]
    answers = [
        client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": row["prompt"]}],
            max_tokens=100,
            temperature=0,
            extra_body={"vllm_xargs": xargs},
        )
        for xargs in (request_args(group=row["group"]), request_args(group="none"))
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage.completion_tokens > 20


def test_a_stream_adds_up_to_the_completion(client: Any, demo_prompts: list[dict[str, Any]]) -> None:
    row = demo_prompts[3]
    keys = request_args(group=row["group"])
    stream = complete(client, row["prompt"], keys, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    whole = complete(client, row["prompt"], keys)
    assert text == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) < whole.usage.completion_tokens, "several tokens should have come in one step"


def test_a_relaxed_request_may_change_its_own_text_only(
    client: Any, demo_prompts: list[dict[str, Any]]
) -> None:
    rows = demo_prompts[:8]
    strict = [text_of(client, row["prompt"], request_args(group=row["group"])) for row in rows]
    relaxed = [
        text_of(client, row["prompt"], request_args(group=row["group"]) | RELAXED, max_tokens=200)
        for row in rows
    ]
    assert relaxed != strict
    assert [text_of(client, row["prompt"]) for row in rows] == strict


@pytest.mark.parametrize(
    ("xargs", "key"),
    [
        ({"dare_grup": "users/1"}, "dare_grup"),
        ({"dare_top_k": 0}, "dare_top_k"),
        ({"dare_preset": "lax"}, "dare_preset"),
        ({"dare_preset": "fast", "dare_verification": "strict"}, "dare_preset"),
        ({"dare_preset": "fast", "dare_max_relaxed": -1}, "dare_max_relaxed"),
        ({"dare_preset": "fast", "dare_top_k": 9}, "dare_top_k"),  # beyond the operator's limit
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
@pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
def test_bad_metadata_is_the_clients_error(client: Any, xargs: dict[str, Any], key: str, chat: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=key) as caught:
        if chat:
            client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "x"}],
                extra_body={"vllm_xargs": xargs},
            )
        else:
            complete(client, "x", xargs)
    assert caught.value.status_code == 400
    assert len(text_of(client, "Write a preference analysis", max_tokens=5)) > 0


@pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
def test_bad_metadata_of_a_stream_is_refused_before_it_begins(client: Any, chat: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="dare_nonsense") as caught:
        if chat:
            client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "x"}],
                stream=True,
                extra_body={"vllm_xargs": {"dare_nonsense": 1}},
            )
        else:
            complete(client, "x", {"dare_nonsense": 1}, stream=True)
    assert caught.value.status_code == 400


def test_another_plugins_keys_are_left_alone(client: Any, demo_prompts: list[dict[str, Any]]) -> None:
    prompt = demo_prompts[0]["prompt"]
    assert text_of(client, prompt, {"other_key": 1}, max_tokens=20) == text_of(client, prompt, max_tokens=20)


def test_log_probs_name_the_tokens_that_were_written(client: Any, demo_prompts: list[dict[str, Any]]) -> None:
    row = demo_prompts[4]
    completion = complete(client, row["prompt"], request_args(group=row["group"]), logprobs=3, max_tokens=60)
    choice = completion.choices[0]
    assert "".join(choice.logprobs.tokens).strip() == choice.text.strip()
    for token, logprob, top in zip(
        choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
    ):
        assert logprob == pytest.approx(max(top.values()), abs=1e-5), token
        assert logprob <= 0


def test_what_relaxing_did_comes_with_the_answer(client: Any, demo_prompts: list[dict[str, Any]]) -> None:
    row = demo_prompts[5]
    answer = complete(client, row["prompt"], request_args(group=row["group"]) | RELAXED, temperature=0.8)
    drafts = answer.model_extra["metrics"]["speculative_decoding"]
    assert drafts["dare"]["exact"] + drafts["dare"]["relaxed"] == drafts["num_accepted_draft_tokens"]
    assert answer.model_extra.get("kv_transfer_params") is None
    strict = complete(client, row["prompt"], request_args(group=row["group"]))
    assert "dare" not in strict.model_extra["metrics"]["speculative_decoding"]


@pytest.mark.parametrize("rule", [{}, RELAXED], ids=["strict", "relaxed"])
def test_a_json_schema_holds(client: Any, demo_prompts: list[dict[str, Any]], rule: dict[str, Any]) -> None:
    for row in demo_prompts[:4]:
        keys = request_args(group=row["group"]) | rule
        choice = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": row["prompt"]}],
            max_tokens=120,
            temperature=0,
            extra_body={"vllm_xargs": keys, "structured_outputs": {"json": SCHEMA}},
        ).choices[0]
        assert choice.finish_reason == "stop"
        answer = json.loads(choice.message.content)
        assert answer.keys() == {"genre", "liked"}
        assert answer["genre"] in {"mystery", "horror"}
        assert isinstance(answer["liked"], bool)


def test_a_client_that_goes_away_leaves_nothing_behind(
    client: Any, address: str, demo_prompts: list[dict[str, Any]]
) -> None:
    expected = text_of(client, demo_prompts[5]["prompt"])
    for row in demo_prompts[5:9]:
        stream = client.completions.create(
            model="demo",
            prompt=row["prompt"],
            max_tokens=700,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True, "vllm_xargs": request_args(group=row["group"])},
        )
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 20
    while metrics(address)["vllm:num_requests_running"]:
        assert time.monotonic() < deadline, "a cancelled request goes on"
        time.sleep(0.05)
    assert text_of(client, demo_prompts[5]["prompt"]) == expected


def test_sixteen_clients_at_once(client: Any, demo_prompts: list[dict[str, Any]]) -> None:
    """Mixed groups, every other request relaxed: the strict ones write what each writes alone."""
    rows = demo_prompts[:32]
    alone = [text_of(client, row["prompt"]) for row in rows[::2]]

    def ask(number: int) -> str:
        rule = RELAXED if number % 2 else {}
        return text_of(client, rows[number]["prompt"], keys_of(rows[number], number // 2) | rule)

    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(ask, range(32)))
    assert together[::2] == alone
    assert all(together)


def test_metrics_agree_with_vllms_own(client: Any, address: str, demo_prompts: list[dict[str, Any]]) -> None:
    rows = demo_prompts[:12]
    keys = [keys_of(row, number) | (RELAXED if number % 3 == 0 else {}) for number, row in enumerate(rows)]
    before = metrics(address)
    with ThreadPoolExecutor(len(rows)) as clients:
        pairs = zip(rows, keys, strict=True)
        answers = list(clients.map(lambda pair: complete(client, pair[0]["prompt"], pair[1]), pairs))
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
