"""Make the demo from nothing: corpus, tokenizer, model, prompts, and the documents of the draft pool.

Run `python make_demo.py` to write everything beside this file, or give another folder with --output.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from corpus import Example, item_examples, make_items, user_examples
from tokenizers import Tokenizer
from train import (
    EOS_ID,
    make_model,
    save_model,
    save_tokenizer,
    to_sample,
    train_model,
    train_tokenizer,
)
from transformers import LlamaForCausalLM

SEED = 20260
THREADS = 2
TRAINING_USERS = 7000
TEXTS_PER_ITEM = 3
HELD_OUT_USERS = 200
DOCUMENT_USERS = 600
DOCUMENT_ITEMS = 96
TRAINING_PREFIX, HELD_OUT_PREFIX = 10_000, 1001
"""User ids: the held-out users are u1001 and up, the training users u10000 and up."""

GENERATION_BATCH = 64
MAX_NEW_TOKENS = 400
TEMPERATURE = 0.7


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# --- Corpus --------------------------------------------------------------------------------------------


def make_corpus(rng: random.Random) -> tuple[list[Example], list[Example], list[Example], list[Example]]:
    """Training users and items, then the held-out users and items, none of which the model will see."""
    catalog, new_items = make_items(rng)
    users = user_examples(TRAINING_PREFIX, TRAINING_USERS, catalog, rng)
    items = [example for _ in range(TEXTS_PER_ITEM) for example in item_examples(catalog, rng)]
    known = {example.prompt for example in users}
    new_users = user_examples(HELD_OUT_PREFIX, HELD_OUT_USERS, catalog, rng)
    if any(example.prompt in known for example in new_users):
        raise ValueError("a held-out user has the prompt of a training user: choose another seed")
    return users, items, new_users, item_examples(new_items, rng)


def write_prompts(output: Path, users: list[Example], items: list[Example]) -> None:
    """The held-out prompts, on which to try the plugin."""
    write_jsonl(
        output / "prompts.jsonl",
        ({"id": u.id, "prompt": u.prompt, "user": u.id, "group": u.group} for u in users),
    )
    write_jsonl(
        output / "item_prompts.jsonl",
        ({"id": i.id, "prompt": i.prompt, "item": i.id, "group": i.group} for i in items),
    )


# --- Pool documents ------------------------------------------------------------------------------------


@torch.no_grad()
def write_texts(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[str], temperature: float
) -> list[str]:
    """Let the model answer the prompts in batches, padded on the left; temperature 0 is greedy."""
    texts: list[str] = []
    for start in range(0, len(prompts), GENERATION_BATCH):
        encoded = [tokenizer.encode(prompt).ids for prompt in prompts[start : start + GENERATION_BATCH]]
        width = max(map(len, encoded))
        inputs = torch.tensor([[EOS_ID] * (width - len(ids)) + ids for ids in encoded])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded])
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        outputs = model.generate(inputs, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, **sampling)
        texts += tokenizer.decode_batch(outputs[:, width:].tolist())
    return texts


def write_documents(
    path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, examples: list[Example], temperature: float
) -> None:
    """The pool of a service that ran before: what this same model wrote for the given users and items."""
    texts = write_texts(model, tokenizer, [example.prompt for example in examples], temperature)
    write_jsonl(
        path,
        (
            {"id": example.id, "text": text, "group": example.group}
            for example, text in zip(examples, texts, strict=True)
        ),
    )


# --- All of it -----------------------------------------------------------------------------------------


def make_demo(output: Path) -> None:
    """Make everything, always with the same seed."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    started = time.monotonic()
    users, items, new_users, new_items = make_corpus(rng)
    tokenizer = train_tokenizer(users + items)
    model_folder = output / "model"
    save_tokenizer(tokenizer, model_folder)
    write_prompts(output, new_users, new_items)

    model = make_model(tokenizer.get_vocab_size())
    print(f"{len(users)} users, {tokenizer.get_vocab_size()} tokens, {model.num_parameters()} parameters")
    samples = [to_sample(tokenizer, example) for example in users + items]
    held_out = [to_sample(tokenizer, example) for example in new_users]
    loss = train_model(model, samples, held_out, rng)
    print(f"held-out loss {loss:.3f} after {time.monotonic() - started:.0f} s")
    save_model(model, model_folder)

    # The documents come from the weights as saved, rounded to bf16, but with faster float arithmetic.
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    step = len(items) // TEXTS_PER_ITEM // DOCUMENT_ITEMS
    authored = users[:DOCUMENT_USERS] + items[: DOCUMENT_ITEMS * step : step]
    write_documents(output / "documents.jsonl", model, tokenizer, authored, 0.0)
    write_documents(output / "documents_sampled.jsonl", model, tokenizer, authored, TEMPERATURE)
    print(f"done after {time.monotonic() - started:.0f} s")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    make_demo(output)


if __name__ == "__main__":
    main()
