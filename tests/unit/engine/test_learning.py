"""What is learned of a request: what the model wrote, no more, and only where that is wanted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm_dare.config import LiveConfig
from vllm_dare.engine import learning
from vllm_dare.engine.learning import Learner, Written
from vllm_dare.pool.live_orders import Unfollowed
from vllm_dare.pool.live_store import prepare_pool
from vllm_dare.pool.manifest import read_manifest
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tokenizer import TokenizerInfo

VOCAB = 64
LONG = list(range(10, 30))


@pytest.fixture
def pool(tmp_path: Path) -> RetrievalPool:
    info = TokenizerInfo(name="numbers", fingerprint="0123456789abcdef", vocab_size=VOCAB)
    prepare_pool(tmp_path / "pool", info)
    return RetrievalPool.open(tmp_path / "pool")


def written(output: list[int], group: str | None = "g", **options: Any) -> Written:
    params = SimpleNamespace(
        ignore_eos=options.pop("ignore_eos", False),
        stop_token_ids=options.pop("stop_token_ids", None),
        all_stop_token_ids={9, 4},
    )
    request = SimpleNamespace(prompt_token_ids=[1, 2, 3], output_token_ids=output, sampling_params=params)
    return Written(request, group, **{"relaxed": False, "max_tokens": 30} | options)


class Silent:
    """An engine that has nothing to say."""

    def gather(self) -> None: ...

    def forget(self, unfollowed: Unfollowed) -> None: ...

    def renew(self) -> None: ...


def texts(learner: Learner, group: str | None = None) -> list[list[int]]:
    """The documents that draft, for a group or for everybody."""
    runs = learner.live.segments(group)[group is None]
    tokens = np.concatenate([run.tokens for run in runs] or [np.empty(0, np.int32)])
    parts = np.split(tokens, np.flatnonzero(tokens == -1) + 1)
    return [part[:-1].tolist() for part in parts if len(part)]


@pytest.mark.parametrize(
    ("output", "options", "learned"),
    [
        ([10, 11, 9], {}, [10, 11]),  # the end token is not part of a document
        ([10, 11, 4, 12, 13], {}, [10, 11]),  # accepted drafts after the end are not the text's
        ([10, 11, 9, 12], {"ignore_eos": True, "stop_token_ids": [12]}, [10, 11, 9]),
        ([*LONG, 9, 10], {"ignore_eos": True}, [*LONG, 9, 10]),
        ([*LONG, 9], {"max_tokens": 18}, LONG[:18]),  # the scheduler cuts here too
        (LONG, {}, LONG),  # a client has gone, or a stop string was found
        ([10, 11, 12], {}, None),  # as above, but not worth it
        ([9], {}, None),
        ([], {}, None),
        ([*LONG, VOCAB + 1, 10, 9], {}, LONG),  # a padding id, which no tokenizer knows
    ],
)
def test_what_is_learned_of_a_text(
    pool: RetrievalPool, output: list[int], options: dict[str, Any], learned: list[int] | None
) -> None:
    learner = Learner(LiveConfig(), pool)
    learner.learn([written(output, **options)])
    assert texts(learner) == texts(learner, "g") == ([] if learned is None else [learned])
    assert learner.errors == 0


def test_a_text_has_the_key_of_whom_it_is_about(pool: RetrievalPool) -> None:
    learner = Learner(LiveConfig(), pool)
    learner.learn([written([10, 11, 9], key=5), written([12, 13, 9])])
    learner.close()
    with RetrievalPool.open(pool.directory / "live") as live:
        found = {
            tuple(tokens.tolist()): key
            for segment in live.global_segments()
            for tokens, key in segment.keyed_documents()
        }
    assert found == {(10, 11): 5, (12, 13): 0}


def test_relaxed_text_is_learned_only_if_wanted_and_says_so(pool: RetrievalPool) -> None:
    learner = Learner(LiveConfig(), pool)
    learner.learn([written(LONG, relaxed=True), written([10, 11, 9])])
    assert texts(learner) == [[10, 11]]
    assert learner.outcome()["relaxed"] == 1
    learner = Learner(LiveConfig(learn_relaxed=True), pool)
    learner.learn([written(LONG, relaxed=True), written([10, 11, 9])])
    learner.close()
    infos = read_manifest(pool.directory / "live").segments.values()
    assert {(info.provenance, info.num_tokens) for info in infos} == {("relaxed", 20), ("strict", 2)}


def test_a_later_engine_drafts_from_what_an_earlier_one_learned(pool: RetrievalPool) -> None:
    first = Learner(LiveConfig(), pool)
    first.start(Silent())
    first.learn([written([10, 11, 9]), written([12, 13, 9], group=None)])
    first.close()
    first.close()
    second = Learner(LiveConfig(), pool)
    assert texts(second) == [[10, 11], [12, 13]]
    assert texts(second, "g") == [[10, 11]]


def test_a_failure_is_counted_and_logged_once(pool: RetrievalPool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        learning.logger, "error", lambda message, *arguments: said.append(message % arguments)
    )
    learner = Learner(LiveConfig(), pool)
    broken = written([10, 11, 9])
    broken.request.output_token_ids = None
    learner.learn([broken])
    learner.learn([broken])
    assert learner.errors == 2
    assert len(said) == 1
    assert "TypeError" in said[0]
    failure = learner.outcome()["failure"]
    assert failure.startswith("a text could not be learned (") and "NoneType" in failure


def test_a_pool_that_has_gone_ends_learning_on_disk_with_one_sentence(
    pool: RetrievalPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        learning.logger, "error", lambda message, *arguments: said.append(message % arguments)
    )
    learner = Learner(LiveConfig(), pool)
    live = pool.directory / "live"
    live.rename(pool.directory / "elsewhere")
    learner.learn([written([10, 11, 9])])
    learner.close()
    assert len(said) == 1
    assert "No such file" in said[0]
    assert texts(learner) == [[10, 11]]
    failure = f"{live} could not be written (No such file or directory)"
    assert learner.outcome() == {"known": 0, "relaxed": 0, "failure": failure}


def test_what_was_known_before_is_counted(pool: RetrievalPool) -> None:
    text = list(range(10, 60)) * 2
    for known in (0, 1):
        learner = Learner(LiveConfig(), pool)
        learner.learn([written([*text, 9], max_tokens=200)])
        learner.close()
        assert learner.outcome() == {"known": known, "relaxed": 0, "failure": None}
