"""The tokenizer and the language model of the demo, trained from nothing on the synthetic corpus."""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import Example
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
SPECIAL_TOKENS = [UNK, BOS, EOS]
UNK_ID, BOS_ID, EOS_ID = range(3)
VOCAB_SIZE = 4096
MAX_LENGTH = 1024

EPOCHS = 2
BATCH_SIZE = 16
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 50
IGNORED = -100

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- message["content"] | trim + "\\n" -}}
{%- if message["role"] == "assistant" -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
"""
"""The model knows no roles: the message is the prompt, and the line after it is the text."""


# --- Tokenizer -----------------------------------------------------------------------------------------


def train_tokenizer(examples: list[Example]) -> Tokenizer:
    """A byte-level BPE, so that any text can be encoded, which puts <s> before every prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((example.prompt + example.text for example in examples), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that transformers and vLLM look for."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": EOS,
        "padding_side": "left",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


# --- Model ---------------------------------------------------------------------------------------------


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """An untrained Llama of about three million parameters, with head size 64, which all kernels take."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write bf16 weights, and a generation config that stops at </s>."""
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=EOS_ID)
    model.to(torch.bfloat16).save_pretrained(folder)


# --- Training ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The token ids of one example; the first `prompt_length` are given, the rest is to be learned."""

    ids: list[int]
    prompt_length: int


def to_sample(tokenizer: Tokenizer, example: Example) -> Sample:
    """Encode prompt and text apart, as they are at inference."""
    prompt = tokenizer.encode(example.prompt).ids
    text = tokenizer.encode(example.text, add_special_tokens=False).ids
    return Sample([*prompt, *text, EOS_ID], len(prompt))


def batches(samples: list[Sample], rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of inputs and labels in random order; samples of one batch are of about the same length."""
    noisy = sorted(samples, key=lambda sample: len(sample.ids) + rng.uniform(0, 20))
    starts = list(range(0, len(noisy), BATCH_SIZE))
    rng.shuffle(starts)
    for start in starts:
        batch = noisy[start : start + BATCH_SIZE]
        width = max(len(sample.ids) for sample in batch)
        inputs = torch.full((len(batch), width), EOS_ID)
        labels = torch.full((len(batch), width), IGNORED)
        for row, sample in enumerate(batch):
            ids = torch.tensor(sample.ids)
            inputs[row, : len(ids)] = ids
            labels[row, sample.prompt_length : len(ids)] = ids[sample.prompt_length :]
        yield inputs, labels


def text_loss(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the text tokens; logits of the prompt are never computed, which saves time."""
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(inputs).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits.float(), targets[wanted])


def learning_rate(step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to nearly zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LEARNING_RATE * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))


def train_model(
    model: LlamaForCausalLM, samples: list[Sample], held_out: list[Sample], rng: random.Random
) -> float:
    """Train in place, and return the loss on the held-out samples."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    total = EPOCHS * math.ceil(len(samples) / BATCH_SIZE)
    started = time.monotonic()
    step = 0
    for _ in range(EPOCHS):
        for inputs, labels in batches(samples, rng):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total)
            loss = text_loss(model, inputs, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0 or step == total:
                print(
                    f"step {step}/{total} loss {loss.item():.3f} {time.monotonic() - started:.0f} s",
                    flush=True,
                )
    return evaluate(model, held_out, rng)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, samples: list[Sample], rng: random.Random) -> float:
    """Mean loss over the batches of the given samples."""
    losses = [text_loss(model, inputs, labels).item() for inputs, labels in batches(samples, rng)]
    return sum(losses) / len(losses)
