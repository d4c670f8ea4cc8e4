"""Small corpora: of token ids, which need no tokenizer, and of users with tastes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_dare.evaluation.corpus import Corpus
from vllm_dare.evaluation.walk import Text
from vllm_dare.pool.tokenizer import TokenizerInfo

VOCAB_SIZE = 100


@pytest.fixture
def make_corpus() -> Callable[..., Corpus]:
    """Makes a corpus of (id to token ids, id to group)."""

    def make(outputs: Mapping[str, Sequence[int]], groups: Mapping[str, str] | None = None) -> Corpus:
        texts = {
            name: Text(name, np.array(output, np.int32), group=(groups or {}).get(name))
            for name, output in outputs.items()
        }
        info = TokenizerInfo(name="numbers", fingerprint="0" * 16, vocab_size=VOCAB_SIZE)
        return Corpus(texts, info, [("numbers.jsonl", "0" * 64)], 0)

    return make


@dataclass(frozen=True)
class Tastes:
    """Files of users who like two genres each, say so, and mostly click on these.

    Attributes:
        folder: where they are.
        texts: id to text.
    """

    folder: Path
    texts: dict[str, str]

    def write(self, name: str, texts: Mapping[str, str], **fields: Any) -> Path:
        """A knowledge file in the folder."""
        path = self.folder / f"{name}.jsonl"
        rows = [
            {"id": i, "text": text, "completion_tokens": len(text.split()), "finish_reason": "stop", **fields}
            for i, text in texts.items()
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    @property
    def options(self) -> list[str]:
        """The command line's options that name the files."""
        files = ["--items", str(self.folder / "items.csv"), "--attribute", "genres"]
        return [*files, "--interactions", str(self.folder / "clicks.csv"), "--id-prefix", "u"]


@pytest.fixture(scope="session")
def tastes(tmp_path_factory: pytest.TempPathFactory) -> Tastes:
    folder = tmp_path_factory.mktemp("tastes")
    generator = np.random.default_rng(0)
    genres = ["Action", "Children's", "Comedy", "Drama", "Sci-Fi", "War"]
    liked = [generator.choice(genres, 2, replace=False) for _ in range(80)]
    moods = ["calm", "tense", "dark", "bright", "slow", "quick"]
    texts = {
        f"u{user}": f"The user likes {one.lower()} and {two.lower()} films, most of all those that are "
        f"{' and '.join(generator.choice(moods, 2))}."
        for user, (one, two) in enumerate(liked)
    }
    has = [generator.choice(genres, 2, replace=False) for _ in range(60)]
    items = [f'{item},"Film, number {item}",{"|".join(found)}' for item, found in enumerate(has)]
    (folder / "items.csv").write_text("\n".join(["movie_id,title,genres", *items]) + "\n")
    clicks = []
    for user, wanted in enumerate(liked):
        for time, item in enumerate(generator.choice(60, 25, replace=False)):
            chance = 0.85 if set(wanted) & set(has[item]) else 0.15
            clicks.append(f"{user},{item},{int(generator.random() < chance)},{time}")
    (folder / "clicks.csv").write_text("\n".join(["userID,movieID,pos,day", *clicks]) + "\n")
    return Tastes(folder, texts)
