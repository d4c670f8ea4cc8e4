"""What the server is asked: every endpoint, and what vLLM offers there."""

import json
from collections.abc import Iterator
from typing import Any

from vllm_dare.pool.documents import Document

SCHEMA = {
    "type": "object",
    "properties": {
        "genre": {"enum": ["mystery", "horror", "romance"]},
        "liked": {"type": "boolean"},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        # With "maxLength" xgrammar lets control characters through, which JSON does not allow.
        "why": {"type": "string", "pattern": "^[a-z ]{1,40}$"},
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

# Name to endpoint, the client's arguments, further fields.
Cases = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]
TEXT_CASES: Cases = {
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
LOGPROB_CASES: Cases = {
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
JSON_CASES: Cases = {
    "chat response_format": ("chat", {"response_format": CHAT_SCHEMA}, {}),
    "chat response_format stream": ("chat", {"response_format": CHAT_SCHEMA, "stream": True}, {}),
    "chat structured outputs": ("chat", {}, {"structured_outputs": {"json": SCHEMA}}),
    "completion structured outputs": ("completions", {}, {"structured_outputs": {"json": SCHEMA}}),
    "completion response_format": ("completions", {}, {"response_format": CHAT_SCHEMA}),
    "responses text format": ("responses", {"text": RESPONSES_SCHEMA}, {}),
    "responses text format stream": ("responses", {"text": RESPONSES_SCHEMA, "stream": True}, {}),
}
CASES = TEXT_CASES | LOGPROB_CASES | JSON_CASES
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
