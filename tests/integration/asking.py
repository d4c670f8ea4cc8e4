"""Asks a server through the real openai client, whatever the endpoint, and makes the answers comparable."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from vllm_dare.request import request_args


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        endpoint: "completions", "chat" or "responses".
        prompt: a text, or for completions a list of texts.
        options: further arguments of the client's method, see `ask` for defaults.
        extra: fields of the body that the client has no argument for.
        xargs: the request's `vllm_xargs`.
        headers: HTTP headers.
    """

    endpoint: str
    prompt: str | list[str]
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    xargs: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Choice:
    """One text of an answer.

    Attributes:
        text: the text; finish: why it ended.
        logprobs: of each token (token, log-probability, token to log-probability of the most probable ones);
            None where none were asked for. A prompt's first token has None for both.
        drafted: what came with it of relaxing, see `vllm_dare.engine.request_meters`.
    """

    text: str = ""
    finish: str | None = None
    logprobs: list[tuple[str, float | None, dict[str, float] | None]] | None = None
    drafted: dict[str, Any] | None = None


@dataclass
class Answer:
    """What came back.

    Attributes:
        choices: the texts.
        num_tokens: how many tokens they have.
        num_chunks: in how many parts they came; 1 unless streamed.
    """

    choices: list[Choice]
    num_tokens: int = 0
    num_chunks: int = 1

    @property
    def texts(self) -> list[str]:
        return [choice.text for choice in self.choices]


def ask_all(address: str, asks: Sequence[Ask], api_key: str = "none") -> list[Answer]:
    """Ask everything at once."""

    async def run() -> list[Answer]:
        async with client_of(address, api_key) as client:
            return await asyncio.gather(*[ask(client, one) for one in asks])

    return asyncio.run(run())


def texts_of(address: str, rows: Sequence[dict[str, Any]], max_tokens: int = 150) -> list[str]:
    """What rows with a `prompt` and a `group` are completed to, asked for all at once."""
    options = {"max_tokens": max_tokens}
    asks = [
        Ask("completions", row["prompt"], options, xargs=request_args(group=row["group"])) for row in rows
    ]
    return [answer.texts[0] for answer in ask_all(address, asks)]


def client_of(address: str, api_key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=api_key, max_retries=0, timeout=240)


async def ask(client: openai.AsyncOpenAI, one: Ask) -> Answer:
    """Greedy, and at most 80 tokens unless `Ask.options` say otherwise."""
    response = await send(client, one)
    read = {"completions": _completion, "chat": _chat, "responses": _response}[one.endpoint]
    return await read(response, bool(one.options.get("stream")))


async def send(client: openai.AsyncOpenAI, one: Ask) -> Any:
    """The client's own answer or stream."""
    extra = one.extra | ({"vllm_xargs": one.xargs} if one.xargs else {})
    common = {"model": "demo", "temperature": 0, "extra_body": extra, "extra_headers": one.headers}
    if one.options.get("stream") and one.endpoint != "responses":
        common["stream_options"] = {"include_usage": True}
    if one.endpoint == "completions":
        return await client.completions.create(
            **common | {"prompt": one.prompt, "max_tokens": 80} | one.options
        )
    if one.endpoint == "chat":
        messages = [{"role": "user", "content": one.prompt}]
        return await client.chat.completions.create(
            **common | {"messages": messages, "max_tokens": 80} | one.options
        )
    return await client.responses.create(
        **common | {"input": one.prompt, "max_output_tokens": 80} | one.options
    )


async def _completion(response: Any, stream: bool) -> Answer:
    answer = Answer([])
    async for part in _parts(response, stream):
        answer.num_chunks += stream
        answer.num_tokens = part.usage.completion_tokens if part.usage else answer.num_tokens
        for found in part.choices:
            choice = _choice(answer, found.index)
            choice.text += found.text
            choice.finish = found.finish_reason
            if (logprobs := found.logprobs) is not None:
                tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
                choice.logprobs = (choice.logprobs or []) + list(
                    zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True)
                )
            choice.drafted = _drafted(part)
    return answer


async def _chat(response: Any, stream: bool) -> Answer:
    answer = Answer([])
    async for part in _parts(response, stream):
        answer.num_chunks += stream
        answer.num_tokens = part.usage.completion_tokens if part.usage else answer.num_tokens
        for found in part.choices:
            choice = _choice(answer, found.index)
            choice.text += (found.delta if stream else found.message).content or ""
            choice.finish = found.finish_reason
            if found.logprobs is not None:
                choice.logprobs = (choice.logprobs or []) + _tops(found.logprobs.content)
            choice.drafted = _drafted(part)
    return answer


async def _response(response: Any, stream: bool) -> Answer:
    if not stream:
        (content,) = response.output[0].content
        logprobs = _tops(content.logprobs) if content.logprobs else None
        return Answer([Choice(content.text, response.status, logprobs)], response.usage.output_tokens)
    choice, answer = Choice(), Answer([], num_chunks=0)
    answer.choices.append(choice)
    async for event in response:
        if event.type == "response.output_text.delta":
            answer.num_chunks += 1
            choice.text += event.delta
            if event.logprobs:
                choice.logprobs = (choice.logprobs or []) + _tops(event.logprobs)
        elif event.type in ("response.completed", "response.incomplete"):
            choice.finish = event.response.status
            answer.num_tokens = event.response.usage.output_tokens
            assert event.response.output_text == choice.text
    return answer


async def _parts(response: Any, stream: bool) -> AsyncIterator[Any]:
    if not stream:
        yield response
        return
    async for part in response:
        yield part


def _choice(answer: Answer, index: int) -> Choice:
    while len(answer.choices) <= index:
        answer.choices.append(Choice())
    return answer.choices[index]


def _tops(content: Any) -> list[tuple[str, float | None, dict[str, float] | None]]:
    return [
        (one.token, one.logprob, {top.token: top.logprob for top in one.top_logprobs or ()})
        for one in content
    ]


def _drafted(part: Any) -> dict[str, Any] | None:
    metrics = (part.model_extra or {}).get("metrics") or {}
    found: dict[str, Any] | None = (metrics.get("speculative_decoding") or {}).get("dare")
    return found
