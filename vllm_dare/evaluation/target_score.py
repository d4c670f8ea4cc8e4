"""How probable texts are under the target model: vLLM reads prompt and text, and tells what it expected."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vllm_dare.evaluation.knowledge import Knowledge, KnowledgeSet
from vllm_dare.generation.engine import start_llm, stop_engine
from vllm_dare.generation.prompts import PromptRow, id_key
from vllm_dare.generation.settings import EngineSettings

_BATCH = 256

Tell = Callable[[str], None]


def score(
    knowledge: KnowledgeSet, prompts: Mapping[str, PromptRow], engine: EngineSettings, tell: Tell
) -> list[np.ndarray]:
    """The mean log-probability of a token, given prompt and the text before it, for every text.

    Token ids are those of the files if all files have them, without the token that ended the text; else the
    texts are encoded anew.

    Args:
        knowledge: the variants.
        prompts: by `id_key`; a text without a prompt is not scored.
        engine: the model; drafts are not used.
        tell: called with what is being done.

    Returns:
        float64[documents] for each variant, natural logarithms; NaN for texts that are empty, have no prompt,
        or do not fit into the model.

    Raises:
        DareError: the engine does not start.
    """
    tell("starting vLLM to score the texts")
    llm = start_llm(engine.llm_args())
    try:
        scorer = _Scorer(llm, knowledge, prompts)
        return [scorer.score(variant, tell) for variant in knowledge.variants]
    finally:
        stop_engine(llm)


class _Scorer:
    def __init__(self, llm: Any, knowledge: KnowledgeSet, prompts: Mapping[str, PromptRow]) -> None:
        self._llm = llm
        self._tokenizer = llm.get_tokenizer()
        self._limit = llm.llm_engine.vllm_config.model_config.max_model_len - 1  # one token is generated
        self._as_written = all(variant.token_ids is not None for variant in knowledge.variants)
        self._prompts = [self._prompt(prompts.get(id_key(i))) for i in knowledge.ids]

    def score(self, variant: Knowledge, tell: Tell) -> np.ndarray:
        found = np.full(len(variant.texts), np.nan)
        todo = []
        for index, prompt in enumerate(self._prompts):
            text = self._text(variant, index)
            if prompt and text and len(prompt) + len(text) <= self._limit:
                todo.append((index, prompt, text))
        for start in range(0, len(todo), _BATCH):
            tell(f"scoring the texts of {variant.name}, {start} of {len(todo)}")
            batch = todo[start : start + _BATCH]
            found[[index for index, _, _ in batch]] = self._means(batch)
        return found

    def _means(self, batch: Sequence[tuple[int, list[int], list[int]]]) -> list[float]:
        from vllm import SamplingParams

        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt + text} for _, prompt, text in batch],
            SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
            use_tqdm=False,
        )
        means = []
        for (_, prompt, text), output in zip(batch, outputs, strict=True):
            told = output.prompt_logprobs[len(prompt) :]
            means.append(
                float(np.mean([step[token].logprob for step, token in zip(told, text, strict=True)]))
            )
        return means

    def _prompt(self, row: PromptRow | None) -> list[int]:
        if row is None:
            return []
        if isinstance(row.prompt, str):
            return list(self._tokenizer.encode(row.prompt))
        ids = self._tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=True)
        return list(ids["input_ids"] if isinstance(ids, Mapping) else ids)

    def _text(self, variant: Knowledge, index: int) -> list[int]:
        if not self._as_written or variant.token_ids is None:
            return list(self._tokenizer.encode(variant.texts[index], add_special_tokens=False))
        ids = list(variant.token_ids[index])
        return ids[:-1] if ids and ids[-1] == self._tokenizer.eos_token_id else ids
