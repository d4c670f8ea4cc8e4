"""Scoring by the target model, with a stand-in that finds token t as probable as exp(-t)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm_dare.evaluation import target_score
from vllm_dare.evaluation.knowledge import Knowledge, KnowledgeSet
from vllm_dare.generation.prompts import PromptRow, id_key
from vllm_dare.generation.settings import EngineSettings

pytest.importorskip("vllm")

END = 99


class Tokenizer:
    """One token a word: its number."""

    eos_token_id = END

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0] * add_special_tokens + [int(word) for word in text.split()]

    def apply_chat_template(self, messages: Any, **options: Any) -> dict[str, list[int]]:
        assert options["add_generation_prompt"]
        return {"input_ids": self.encode(messages[0]["content"])}


class Model:
    """Takes 12 tokens; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.is_stopped = False
        config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=12))
        self.llm_engine = SimpleNamespace(vllm_config=config)

    def stop(self, llm: Any) -> None:
        self.is_stopped = True

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def generate(self, prompts: Any, params: Any, use_tqdm: bool) -> list[Any]:
        assert params.prompt_logprobs == 0 and params.max_tokens == 1
        self.asked += [prompt["prompt_token_ids"] for prompt in prompts]
        return [SimpleNamespace(prompt_logprobs=_told(p["prompt_token_ids"])) for p in prompts]


def _told(tokens: list[int]) -> list[Any]:
    return [None, *({token: SimpleNamespace(logprob=-float(token))} for token in tokens[1:])]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    started = Model()
    monkeypatch.setattr(target_score, "start_llm", lambda arguments: started)
    monkeypatch.setattr(target_score, "stop_engine", started.stop)
    return started


def _variant(name: str, texts: list[str], token_ids: Any) -> Knowledge:
    nothing = np.full(len(texts), np.nan)
    return Knowledge(name, Path(name), texts, nothing, nothing, token_ids)


PROMPTS = {
    id_key(1): PromptRow(1, "5 6", {}),
    id_key("2"): PromptRow("2", [{"role": "user", "content": "7"}], {}),
    id_key("3"): PromptRow("3", "5 " * 20, {}),
}


def _score(variants: list[Knowledge]) -> list[np.ndarray]:
    knowledge = KnowledgeSet(["1", "2", "3", "4"], variants, {}, 0)
    return target_score.score(knowledge, PROMPTS, EngineSettings("m", draft_tokens=0), lambda what: None)


def test_the_mean_is_over_the_texts_tokens_alone(model: Model) -> None:
    texts = ["1 2 3", "", "1", "1"]
    one, two = _score([_variant("a", texts, None), _variant("b", ["4", "6 8", "1", "1"], None)])
    np.testing.assert_array_equal(one, [-2.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(two, [-4.0, -7.0, np.nan, np.nan])
    assert model.is_stopped
    assert model.asked == [[0, 5, 6, 1, 2, 3], [0, 5, 6, 4], [0, 7, 6, 8]]


def test_token_ids_are_taken_if_all_have_them_but_for_the_end(model: Model) -> None:
    texts = ["1"] * 4
    ids = [[3, 5, END], [END], [3], [3]]
    one, two = _score([_variant("a", texts, ids), _variant("b", texts, ids)])
    np.testing.assert_array_equal(one, [-4.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(one, two)
    model.asked.clear()
    one, _ = _score([_variant("a", texts, ids), _variant("b", texts, None)])
    np.testing.assert_array_equal(one, [-1.0, -1.0, np.nan, np.nan])
