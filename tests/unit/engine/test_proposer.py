"""DareProposer on a runner that is not there: what it drafts, for whom, and what it survives."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

pytest.importorskip("vllm")

from vllm_dare.drafting.step_costs import StepLoad
from vllm_dare.engine import metrics_endpoint, plugin
from vllm_dare.engine.metrics_file import NO_GROUP, OTHER_GROUPS
from vllm_dare.engine.proposer import DareProposer
from vllm_dare.engine.request_meters import METERS
from vllm_dare.engine.spans import GROUPS
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.build import build_pool
from vllm_dare.pool.documents import Document
from vllm_dare.pool.drop import drop_documents
from vllm_dare.pool.lock import has_older_readers
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.routing.query import Query
from vllm_dare.routing.router_file import RouterFile, write_item_router, write_user_router
from vllm_dare.verification import policy

VOCAB = 64
MAX_MODEL_LEN = 40
MAX_DRAFTS = 6
TEXTS = {
    "users/a": [1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
    "items/b": [1, 2, 3, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40],
}
PREFIX = [50, 51, 1, 2, 3]


class Runner:
    """The parts of vLLM's model runner that the proposer looks at."""

    def __init__(self) -> None:
        self.max_model_len = MAX_MODEL_LEN
        self.rejection_sampler = SimpleNamespace()
        self.parallel_config = SimpleNamespace(data_parallel_index=0, tensor_parallel_size=1)
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(req_ids=[])
        self.texts: dict[str, list[int]] = {}

    def add(
        self,
        request_id: str,
        text: list[int],
        extra_args: dict[str, Any] | None = None,
        output: int = 1,
        max_tokens: int | None = 30,
        min_tokens: int = 0,
    ) -> None:
        params = SimpleNamespace(
            extra_args=extra_args,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            all_stop_token_ids={9, 4},
            temperature=0.0,
            seed=None,
            ignore_eos=False,
        )
        self.requests[request_id] = SimpleNamespace(
            sampling_params=params,
            prompt_token_ids=text[: len(text) - output],
            output_token_ids=text[len(text) - output :],
        )
        self.texts[request_id] = text
        if request_id not in self.input_batch.req_ids:
            self.input_batch.req_ids.append(request_id)

    def remove(self, request_id: str) -> None:
        del self.requests[request_id]
        self.input_batch.req_ids.remove(request_id)

    def propose(self, drafter: DareProposer, waiting: tuple[str, ...] = ()) -> dict[str, list[int]]:
        """One step for every request; those `waiting` have not done their prompt."""
        ids = self.input_batch.req_ids
        tokens = np.zeros((len(ids), MAX_MODEL_LEN), np.int32)
        sizes = np.zeros(len(ids), np.int32)
        for row, request_id in enumerate(ids):
            text = self.texts[request_id]
            tokens[row, : len(text)] = text
            sizes[row] = len(text)
        self.query_start_loc = SimpleNamespace(np=np.arange(len(ids) + 1, dtype=np.int32))
        sampled = [[] if i in waiting else self.texts[i][-1:] for i in ids]
        return dict(zip(ids, drafter.propose(sampled, sizes, tokens), strict=True))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = {f"w{number}": number for number in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def documents_of(*groups: str) -> list[Document]:
    """What stands in a pool but once is drafted in short chains only, so every text is there eight times."""
    names = {"users/a": "u", "items/b": "i"}
    return [
        Document(id=f"{names[group]}{i}", token_ids=np.array(TEXTS[group], np.int32), group=group)
        for group in groups
        for i in range(8)
    ]


@pytest.fixture
def pool(tokenizer: str, tmp_path: Path) -> Path:
    """Two groups that go on differently after the same beginning; user u1 and item i1 belong to them."""
    build_pool(documents_of("users/a", "items/b"), tokenizer, tmp_path / "pool", global_segment=False)
    return tmp_path / "pool"


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tensor-parallel group, without the patches of a real worker."""
    group = SimpleNamespace(rank_in_group=0)
    monkeypatch.setattr("vllm.distributed.parallel_state.get_tp_group", lambda: group)
    monkeypatch.setattr(plugin, "prepare_worker", lambda: None)
    return group


@pytest.fixture
def make(rank: SimpleNamespace, runner: Runner) -> Callable[..., DareProposer]:
    def make(
        pool: Path | None, returns_meters: bool = False, makes_spans: bool = False, **settings: Any
    ) -> DareProposer:
        dare = {"draft_budget": "fixed", **settings}
        if pool is not None:
            dare["pool"] = str(pool)
        config = SimpleNamespace(
            additional_config={"dare": dare},
            speculative_config=SimpleNamespace(num_speculative_tokens=MAX_DRAFTS),
            model_config=SimpleNamespace(get_vocab_size=lambda: VOCAB),
            observability_config=SimpleNamespace(
                per_request_spec_decode_metrics="summary" if returns_meters else "none",
                otlp_traces_endpoint="http://127.0.0.1:4317" if makes_spans else None,
            ),
        )
        drafter = DareProposer(config)
        drafter.load_model()
        drafter.bind(runner)
        return drafter

    return make


def below_vllm(record: logging.LogRecord) -> bool:
    return record.name.startswith("vllm.")


@pytest.fixture
def errors_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], list[str]]]:
    """The errors that vLLM's log shows; of our loggers, only those below "vllm" have a handler."""
    vllm_logger = logging.getLogger("vllm")
    monkeypatch.setattr(vllm_logger, "propagate", False)
    vllm_logger.addHandler(caplog.handler)
    caplog.handler.addFilter(below_vllm)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    caplog.handler.removeFilter(below_vllm)
    vllm_logger.removeHandler(caplog.handler)


def test_a_group_drafts_its_own_text(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool)
    runner.add("a", PREFIX, {"dare_group": "users/a"})
    runner.add("b", PREFIX, {"dare_group": "items/b"})
    assert runner.propose(drafter) == {"a": [10, 11, 12, 13, 14, 15], "b": [30, 31, 32, 33, 34, 35]}
    assert drafter.errors == 0


def test_users_and_items_go_to_their_groups(make: Any, runner: Runner, pool: Path) -> None:
    runner.add("user", PREFIX, {"dare_user": "u1"})
    runner.add("item", PREFIX, {"dare_item": "i1"})
    runner.add("user first", PREFIX, {"dare_user": "u1", "dare_item": "i1"})
    runner.add("unknown user", PREFIX, {"dare_user": "u77", "dare_item": "i1"})
    runner.add("group first", PREFIX, {"dare_group": "items/b", "dare_user": "u1"})
    first = {request_id: drafts[0] for request_id, drafts in runner.propose(make(pool)).items()}
    assert first == {"user": 10, "item": 30, "user first": 10, "unknown user": 30, "group first": 30}


@pytest.fixture
def routed(tokenizer: str, tmp_path: Path) -> Path:
    """As `pool`, with routers: of histories and ages to users/a or nobody's group, of genres to items/b."""
    scores = {
        f"age={age}": np.log(np.array(p, np.float32)) for age, p in ((20, [0.9, 0.1]), (60, [0.1, 0.9]))
    }
    users = write_user_router(
        tmp_path,
        groups=["users/a", "users/without text"],
        centroids=np.eye(2, dtype=np.float32),
        item_ids=["i1", "i2", "i3"],
        item_vectors=np.array([[1, 0], [0.5, 0.4], [0, 2]], np.float32),
        attributes=scores,
    )
    items = write_item_router(
        tmp_path, groups=["items/b"], attribute="genre", values={"War": "items/b"}, ranks={}, rule="largest"
    )
    build_pool(
        documents_of("users/a", "items/b"),
        tokenizer,
        tmp_path / "routed",
        global_segment=False,
        routers=[RouterFile.open(users), RouterFile.open(items)],
    )
    return tmp_path / "routed"


def test_histories_and_attributes_find_a_group(make: Any, runner: Runner, routed: Path) -> None:
    drafter = make(routed)
    runner.add("history", PREFIX, {"dare_user": "new", "dare_history": ["i1", "i2", "unheard of"]})
    runner.add("other history", PREFIX, {"dare_history": ["i3"]})
    runner.add("age", PREFIX, {"dare_history": ["unheard of"], "dare_attributes": {"age": 20}})
    runner.add("over HTTP", PREFIX, {"dare_attributes": ["genre=Peace", "genre=War"]})
    runner.add("known first", PREFIX, {"dare_item": "i1", "dare_history": ["i1"]})
    runner.add("nothing known", PREFIX, {"dare_user": "new", "dare_attributes": {"age": 30}})
    first = {request_id: drafts[:1] for request_id, drafts in runner.propose(drafter).items()}
    assert first == {
        "history": [10],
        "other history": [],
        "age": [10],
        "over HTTP": [30],
        "known first": [30],
        "nothing known": [],
    }
    assert drafter.errors == 0


def test_a_request_is_routed_once(
    make: Any, runner: Runner, routed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = make(routed)
    router = drafter.drafter.pool.router
    asked: list[Query] = []
    route = router.route
    monkeypatch.setattr(router, "route", lambda query: asked.append(query) or route(query))
    runner.add("a", PREFIX, {"dare_history": ["i1"]})
    for _ in range(3):
        assert runner.propose(drafter)["a"][:1] == [10]
    assert asked == [Query(history=("i1",))]


def test_a_router_that_fails_costs_no_request(
    make: Any, runner: Runner, routed: Path, errors_logged: Callable[[], list[str]]
) -> None:
    for path in routed.glob("router-*"):
        path.unlink()
    drafter = make(routed)
    runner.add("named", PREFIX, {"dare_group": "users/a"})
    runner.add("history", PREFIX, {"dare_history": ["i1"]})
    drafts = runner.propose(drafter)
    assert (drafts["named"][:1], drafts["history"]) == ([10], [])
    assert drafter.errors == 1
    assert "is missing" in errors_logged()[0]


def test_an_unknown_group_falls_back_to_the_global_text(
    make: Any, runner: Runner, tokenizer: str, tmp_path: Path
) -> None:
    build_pool(documents_of("users/a"), tokenizer, tmp_path / "global")
    runner.add("unknown", PREFIX, {"dare_group": "nobody"})
    runner.add("none", PREFIX)
    drafts = runner.propose(make(tmp_path / "global"))
    assert drafts["unknown"] == drafts["none"] == [10, 11, 12, 13, 14, 15]


def test_without_a_global_segment_an_unknown_group_has_no_drafts(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool)
    runner.add("unknown", PREFIX, {"dare_group": "nobody"})
    assert runner.propose(drafter) == {"unknown": []}
    assert drafter.errors == 0


def test_without_a_pool_a_request_drafts_from_its_own_text(make: Any, runner: Runner) -> None:
    runner.add("a", [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], {"dare_group": "users/a"})
    assert runner.propose(make(None))["a"][:3] == [4, 5, 6]


def test_a_prompt_that_is_not_done_has_no_drafts(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool)
    for request_id in ("a", "b", "c"):
        runner.add(request_id, PREFIX, {"dare_group": "users/a"})
    drafts = runner.propose(drafter, waiting=("a", "c"))
    assert (drafts["a"], drafts["c"]) == ([], [])
    assert len(drafts["b"]) == MAX_DRAFTS
    assert runner.propose(drafter, waiting=("a", "b", "c")) == {"a": [], "b": [], "c": []}


@pytest.mark.parametrize(("size", "drafts"), [(33, 6), (35, 4), (38, 1), (39, 0)])
def test_drafts_end_before_the_models_limit(
    make: Any, runner: Runner, pool: Path, size: int, drafts: int
) -> None:
    """`drafts` and the token after them just fit."""
    runner.add("a", [60] * (size - 3) + [1, 2, 3], {"dare_group": "users/a"})
    runner.add("beside it", PREFIX, {"dare_group": "users/a"})
    proposed = runner.propose(make(pool))
    assert len(proposed["a"]) == drafts
    assert len(proposed["beside it"]) == MAX_DRAFTS


@pytest.mark.parametrize(("min_tokens", "drafts"), [(1, 6), (2, 0), (3, 1), (5, 3), (20, 6)])
def test_no_step_goes_beyond_where_a_text_may_end(
    make: Any, runner: Runner, pool: Path, min_tokens: int, drafts: int
) -> None:
    """vLLM would forbid the end there, too. One token is written."""
    runner.add("a", PREFIX, {"dare_group": "users/a"}, min_tokens=min_tokens)
    runner.add("free", PREFIX, {"dare_group": "users/a"})
    proposals = runner.propose(make(pool))
    assert len(proposals["a"]) == drafts
    assert len(proposals["free"]) == MAX_DRAFTS


@pytest.mark.parametrize(("max_tokens", "drafts"), [(2, 0), (3, 1), (5, 3), (None, 6)])
def test_drafts_end_before_the_requests_limit(
    make: Any, runner: Runner, pool: Path, max_tokens: int | None, drafts: int
) -> None:
    """One token is written; the last of `max_tokens` needs no draft."""
    runner.add("a", PREFIX, {"dare_group": "users/a"}, max_tokens=max_tokens)
    assert len(runner.propose(make(pool))["a"]) == drafts


def test_a_reused_id_is_a_new_request(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool)
    runner.add("same", PREFIX, {"dare_group": "users/a"}, max_tokens=3)
    assert runner.propose(drafter)["same"] == [10]
    runner.add("same", PREFIX, {"dare_group": "items/b", "dare_verification": "relaxed"})
    assert runner.propose(drafter)["same"] == [30, 31, 32, 33, 34, 35]
    assert [rule.relaxes for rule in drafter.rules_of_batch()] == [True]


def test_a_preempted_request_comes_back_where_it_was(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool)
    runner.add("a", PREFIX, {"dare_group": "users/a"})
    expected = runner.propose(drafter)["a"]
    runner.input_batch.req_ids.remove("a")
    runner.add("b", PREFIX, {"dare_group": "items/b"})
    runner.propose(drafter)
    runner.input_batch.req_ids.append("a")
    assert runner.propose(drafter)["a"] == expected


def test_finished_requests_are_forgotten(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool)
    for number in range(200):
        runner.add(str(number), PREFIX)
        runner.propose(drafter)
        runner.remove(str(number))
    assert len(drafter._states) < 10


def test_rules_are_in_batch_order_and_know_the_stop_tokens(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool)
    runner.add("strict", PREFIX)
    runner.add("relaxed", PREFIX, {"dare_verification": "relaxed", "dare_top_k": 5})
    strict, relaxed = drafter.rules_of_batch()
    assert (strict.relaxes, relaxed.relaxes) == (False, True)
    assert relaxed.row[policy.TOP_K] == 5
    assert relaxed.guard_ids.tolist() == [4, 9]


def test_what_relaxing_did_goes_with_the_output_of_relaxed_requests(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool, returns_meters=True)
    runner.add("strict", PREFIX)
    runner.add("relaxed", PREFIX, {"dare_verification": "relaxed"})
    _, relaxed = drafter.rules_of_batch()
    relaxed.meters.add([5, 2, 1.0, 1])
    output = SimpleNamespace(req_ids=["strict", "relaxed", "gone"])
    drafter.report_meters(output)
    assert getattr(output, METERS) == {
        "relaxed": {
            "exact": 5, "relaxed": 2, "given_up": 1.0, "budget_stops": 1, "given_up_per_token": 0.5
        }
    }  # fmt: skip
    silent, output = make(pool), SimpleNamespace(req_ids=["relaxed"])
    silent.rules_of_batch()
    silent.report_meters(output)
    assert not hasattr(output, METERS)
    assert not hasattr(output, GROUPS)


def test_where_spans_are_made_the_group_of_every_request_goes_with_the_output(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool, makes_spans=True)
    runner.add("known", PREFIX, {"dare_group": "users/a"})
    runner.add("made up", PREFIX, {"dare_group": "<any text>", "dare_verification": "relaxed"})
    runner.add("none", PREFIX)
    drafter.rules_of_batch()
    output = SimpleNamespace(req_ids=["known", "made up", "none", "gone"])
    drafter.report_meters(output)
    assert getattr(output, GROUPS) == {"known": "users/a", "made up": OTHER_GROUPS, "none": None}
    assert set(getattr(output, METERS)) == {"made up"}


def test_a_failing_look_up_costs_drafts_only_and_is_logged_once(
    make: Any,
    runner: Runner,
    pool: Path,
    monkeypatch: pytest.MonkeyPatch,
    errors_logged: Callable[[], list[str]],
) -> None:
    drafter = make(pool)
    runner.add("a", PREFIX, {"dare_group": "users/a"})
    runner.add("b", PREFIX)
    with monkeypatch.context() as broken:
        broken.setattr(drafter.drafter, "draft", lambda *_, **_named: 1 / 0)
        for _ in range(3):
            assert runner.propose(drafter) == {"a": [], "b": []}
    assert drafter.errors == 3
    assert len(errors_logged()) == 1
    assert "ZeroDivisionError" in errors_logged()[0]
    assert len(runner.propose(drafter)["a"]) == MAX_DRAFTS, "it goes on where it can"


def test_a_group_whose_file_has_gone_is_served_without_it(
    make: Any, runner: Runner, pool: Path, errors_logged: Callable[[], list[str]]
) -> None:
    drafter = make(pool)
    (gone,) = drafter.drafter.pool.manifest.groups["users/a"]
    (pool / "segments" / f"{gone}.safetensors").unlink()
    runner.add("a", PREFIX, {"dare_group": "users/a"})
    runner.add("b", PREFIX, {"dare_group": "items/b"})
    drafts = runner.propose(drafter)
    assert drafts["a"] == []
    assert drafts["b"] == [30, 31, 32, 33, 34, 35]
    assert drafter.errors == 1
    assert gone in errors_logged()[0]
    runner.propose(drafter)
    assert drafter.errors == 1, "looked up once per request"


def test_a_group_whose_file_has_gone_still_has_the_global_text(
    make: Any, runner: Runner, tokenizer: str, tmp_path: Path
) -> None:
    build_pool(documents_of(*TEXTS), tokenizer, tmp_path / "global")
    drafter = make(tmp_path / "global")
    (gone,) = drafter.drafter.pool.manifest.groups["users/a"]
    (tmp_path / "global" / "segments" / f"{gone}.safetensors").unlink()
    runner.add("a", [*PREFIX, 10], {"dare_group": "users/a"})
    assert runner.propose(drafter)["a"] == [11, 12, 13, 14, 15, 16]
    assert drafter.errors == 1


@pytest.mark.parametrize("bad", [{"dare_nonsense": 1}, {"dare_top_k": 0}, {"dare_group": 7.5}], ids=str)
def test_bad_keys_that_came_past_the_front_end_mean_the_defaults(
    make: Any, runner: Runner, pool: Path, bad: dict[str, Any]
) -> None:
    drafter = make(pool)
    runner.add("bad", PREFIX, {"dare_verification": "relaxed", **bad})
    runner.add("good", PREFIX, {"dare_group": "users/a"})
    drafts = runner.propose(drafter)
    assert (drafts["bad"], len(drafts["good"])) == ([], MAX_DRAFTS)
    assert [rule.relaxes for rule in drafter.rules_of_batch()] == [False, False]
    assert drafter.errors == 1


def test_a_request_without_sampling_parameters_is_served(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool)
    runner.add("pooling", PREFIX)
    runner.requests["pooling"].sampling_params = None
    assert runner.propose(drafter) == {"pooling": []}
    assert drafter.errors == 0


def test_other_tensor_parallel_ranks_draft_nothing_but_know_the_rules(
    make: Any, runner: Runner, pool: Path, rank: SimpleNamespace
) -> None:
    rank.rank_in_group = 1
    drafter = make(pool)
    runner.add("a", PREFIX, {"dare_group": "users/a", "dare_verification": "relaxed"})
    assert runner.propose(drafter) == {"a": []}
    assert [rule.relaxes for rule in drafter.rules_of_batch()] == [True]


def test_other_tensor_parallel_ranks_keep_no_old_files(
    make: Any, tokenizer: str, runner: Runner, pool: Path, rank: SimpleNamespace
) -> None:
    """They never take up a newer version: what they had open could not be removed until the engine ends."""
    rank.rank_in_group = 1
    drafter = make(pool)
    build_pool(documents_of("users/a"), tokenizer, pool, global_segment=False, overwrite=True)
    assert not has_older_readers(pool)
    assert len(list((pool / "segments").glob("*.safetensors"))) == 1
    runner.add("a", PREFIX, {"dare_group": "users/a", "dare_verification": "relaxed"})
    assert runner.propose(drafter) == {"a": []}
    drafter.close()
    assert drafter.errors == 0


def test_drafts_are_the_same_in_every_run(make: Any, runner: Runner, pool: Path) -> None:
    for number in range(8):
        runner.add(str(number), PREFIX, {"dare_group": list(TEXTS)[number % 2]})
    assert runner.propose(make(pool)) == runner.propose(make(pool))


def test_relaxed_requests_draw_their_drafts_by_their_prompt(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool=str(pool))
    relaxed = {"dare_verification": "relaxed"}
    runner.add("strict", [*PREFIX, 10])
    runner.add("relaxed", [*PREFIX, 10], relaxed)
    runner.add("same", [*PREFIX, 10], relaxed)
    runner.add("other", [1, *PREFIX, 10], relaxed)
    drafter.rules_of_batch()
    seeds = {key: state.seed for key, state in drafter._states.items()}
    assert seeds["strict"] == 0
    assert seeds["relaxed"] == seeds["same"] != seeds["other"] != 0


def test_the_load_decides_how_much_of_a_chain_is_sent(make: Any, runner: Runner, pool: Path) -> None:
    """The budget hears of every step and gets the last word."""
    drafter = make(pool, draft_budget="auto")
    runner.add("a", PREFIX, {"dare_group": "users/a"})
    runner.add("b", PREFIX, {"dare_group": "items/b"})
    assert sum(map(len, runner.propose(drafter).values())) == 8, "nothing is known of their cost yet"
    steps, budget = [], drafter._pacing.budget
    budget.costs.observe = lambda _seconds, load: steps.append(load)
    budget.choose = lambda _survivals, lengths, *_: np.minimum(lengths, [1, 2])
    assert runner.propose(drafter) == {"a": [10], "b": [30, 31]}
    assert steps == [StepLoad(sequences=2, sampled=0, drafts=0)], "the scheduler sent none"
    budget.resting, budget.rests = lambda _sequences: True, lambda: True
    assert runner.propose(drafter) == {"a": [], "b": []}
    assert drafter.errors == 0


def test_kinds_of_requests_for_the_budget(make: Any, runner: Runner) -> None:
    drafter = make(None, draft_budget="auto")
    for name, extra_args in (("strict", {}), ("relaxed", {"dare_preset": "fast"})):
        runner.add(name, PREFIX, extra_args)
        runner.add(f"sampled {name}", PREFIX, extra_args)
        runner.requests[f"sampled {name}"].sampling_params.temperature = 0.7
    drafter.rules_of_batch()
    kinds = {key: state.kind for key, state in drafter._states.items()}
    assert kinds == {"strict": 0, "sampled strict": 1, "relaxed": 2, "sampled relaxed": 3}


def test_with_a_seed_the_load_decides_nothing_that_the_text_depends_on(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool, draft_budget="auto")
    for name, temperature, seed, extra_args in (
        ("strict", 0.0, 1, {}),
        ("sampled", 0.7, None, {}),
        ("seeded", 0.7, 0, {}),
        ("seeded relaxed", 0.0, 1, {"dare_verification": "relaxed"}),
    ):
        runner.add(name, PREFIX, {"dare_group": "users/a", **extra_args})
        runner.requests[name].sampling_params.temperature = temperature
        runner.requests[name].sampling_params.seed = seed
    drafter.rules_of_batch()
    whole = {key: state.sends_whole_chains for key, state in drafter._states.items()}
    assert whole == {"strict": False, "sampled": False, "seeded": True, "seeded relaxed": True}
    budget = drafter._pacing.budget
    for _ in range(3):  # a machine on which drafts cost a thousand times what a step does
        for drafts in (0, 4, 12, 24):
            budget.costs.observe(1.0 + 1000.0 * drafts, StepLoad(4, 2, drafts))
    budget._worth, budget._rest_left = -1.0, 9
    for _ in range(8):
        lengths = {name: len(drafts) for name, drafts in runner.propose(drafter).items()}
        assert lengths["seeded"] == lengths["seeded relaxed"] == MAX_DRAFTS


def test_what_a_request_wrote_drafts_for_the_next_one_at_once(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool, live={})
    runner.add("first", [*PREFIX, 20, 21, 22, 23, 9], {"dare_group": "new"}, output=5)
    assert runner.propose(drafter) == {"first": []}
    runner.remove("first")
    runner.add("next", [40, 41, 20], {"dare_group": "new"})
    runner.add("other group", [40, 41, 20], {"dare_group": "users/a"})
    drafter.rules_of_batch()  # comes before `propose` where drafts were verified in the step
    drafts = runner.propose(drafter)
    assert drafts["next"][:3] == [21, 22, 23]
    assert drafts["other group"] == []
    drafter.close()
    assert (pool / "live" / "manifest.json").exists()


def test_what_is_learned_has_the_key_of_the_user_or_item_of_its_request(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool, live={})
    named = {"user": {"dare_user": "u1", "dare_item": "i1"}, "item": {"dare_item": 5}, "nobody": {}}
    for token, (name, keys) in enumerate(named.items(), start=20):
        runner.add(name, [*PREFIX, token, 9], {"dare_group": "new", **keys}, output=2)
    runner.propose(drafter)
    for name in named:
        runner.remove(name)
    drafter.rules_of_batch()
    drafter.close()
    with RetrievalPool.open(pool / "live") as live:
        documents = [one for segment in live.group_segments("new") for one in segment.keyed_documents()]
    assert {int(tokens[0]): key for tokens, key in documents} == {
        20: entity_hash("user", "u1"),
        21: entity_hash("item", "5"),
        22: 0,
    }


def test_a_reused_id_does_not_lose_the_text_of_the_request_before(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool, live={})
    runner.add("a", [*PREFIX, 20, 21, 22, 23, 9], {"dare_group": "new"}, output=5)
    runner.propose(drafter)
    runner.add("a", [40, 41, 20], {"dare_group": "new"})
    assert runner.propose(drafter)["a"][:3] == [21, 22, 23]


def test_only_the_rank_that_drafts_learns(make: Any, runner: Runner, rank: Any, pool: Path) -> None:
    rank.rank_in_group = 1
    drafter = make(pool, live={})
    runner.add("a", [*PREFIX, 20, 21, 22, 23, 9], {"dare_group": "new"}, output=5)
    runner.propose(drafter)
    drafter.rules_of_batch()
    drafter.close()
    assert not (pool / "live").exists()


@pytest.mark.parametrize("number", [0, 1])
def test_one_tensor_parallel_rank_tells_what_relaxing_did(
    make: Any, runner: Runner, rank: Any, pool: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    rank.rank_in_group = number
    drafter = make(pool)
    runner.rejection_sampler.meters.exact = 5
    logger = logging.getLogger("vllm")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="vllm"):
            drafter.close()
    finally:
        logger.removeHandler(caplog.handler)
    assert ("requests with a relaxed rule: exact 5" in caplog.text) == (number == 0)


def test_what_was_written_before_an_idle_time_is_learned_in_it(make: Any, runner: Runner, pool: Path) -> None:
    drafter = make(pool, live={})
    runner.add("last", [*PREFIX, 20, 21, 22, 23, 9], {"dare_group": "new"}, output=5)
    runner.propose(drafter)
    runner.remove("last")
    deadline = time.monotonic() + 20
    while not drafter._learner.live.segments("new")[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert drafter._learner.live.segments("new")[0]
    drafter.close()


def until(condition: Callable[[], object]) -> None:
    """Wait for the background."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_was_learned_of_a_user_is_dropped_while_requests_run(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool, live={})
    keys = {"dare_user": "u1", "dare_group": "new"}
    runner.add("before", [*PREFIX, 20, 21, 22, 23, 24, 25, 26, 27, 9], keys, output=9)
    runner.propose(drafter)
    runner.remove("before")
    runner.add("during", [40, 41, 28, 29, 30, 31, 32, 33, 34, 35, 36, 9], keys, output=10)
    runner.add("other", [40, 41, 20], {"dare_group": "new"})
    assert runner.propose(drafter)["other"][:3] == [21, 22, 23]
    with ThreadPoolExecutor(1) as background:
        dropping = background.submit(
            drop_documents, pool, {entity_hash("user", "u1")}, "user 'u1'", wait_seconds=20
        )
        while not dropping.done():
            runner.propose(drafter)
            time.sleep(0.02)
    report = dropping.result()
    assert (report.is_learned, report.is_followed, report.is_read) == (True, True, False)
    assert runner.propose(drafter)["other"] == []
    runner.remove("during")
    runner.add("next", [40, 41, 28], {"dare_group": "new"})
    assert runner.propose(drafter) == {"other": [], "next": []}
    runner.add("after", [42, 43, 44, 45, 46, 9], keys, output=4)
    runner.propose(drafter)
    runner.remove("after")
    runner.add("last", [42, 43, 44], {"dare_group": "new"})
    assert runner.propose(drafter)["last"][:2] == [45, 46]
    assert drafter.errors == 0
    drafter.close()
    with RetrievalPool.open(pool / "live") as live:
        (segment,) = live.group_segments("new")
        assert [one.tolist() for one in segment.documents()] == [[44, 45, 46]]


def test_an_engine_whose_directory_of_learned_text_has_gone_forgets_too(
    make: Any, runner: Runner, pool: Path
) -> None:
    drafter = make(pool, live={})
    shutil.rmtree(pool / "live")
    until(lambda: drafter._learner.errors)
    runner.add("before", [*PREFIX, 20, 21, 22, 23, 9], {"dare_user": "u9", "dare_group": "new"}, output=5)
    runner.propose(drafter)
    runner.remove("before")
    until(lambda: drafter._learner.live.segments("new")[0])
    report = drop_documents(pool, {entity_hash("user", "u9")}, "user 'u9'", wait_seconds=10)
    assert (report.is_learned, report.is_followed, report.num_documents) == (True, True, 0)
    runner.add("next", [40, 41, 20], {"dare_group": "new"})
    assert runner.propose(drafter)["next"] == []
    drafter.close()


def test_an_idle_engine_takes_up_a_newer_pool(
    make: Callable[..., DareProposer], pool: Path, tokenizer: str, runner: Runner
) -> None:
    drafter = make(pool)
    runner.add("r", TEXTS["users/a"][:4], {"dare_user": "u1"})
    runner.propose(drafter)
    build_pool(documents_of("items/b"), tokenizer, pool, global_segment=False, overwrite=True)
    time.sleep(0.1)
    drafter._watch.look()  # type: ignore[union-attr]
    drafter._serve_while_idle()
    assert has_older_readers(pool)  # a request runs, whose next step takes the pool up
    runner.remove("r")
    until(lambda: not has_older_readers(pool))
    runner.add("s", TEXTS["items/b"][:4], {"dare_user": "u1"})
    assert runner.propose(drafter)["s"] == []
    runner.add("t", TEXTS["items/b"][:4], {"dare_group": "items/b"})
    assert runner.propose(drafter)["t"] == TEXTS["items/b"][4 : 4 + MAX_DRAFTS]
    drafter.close()


def test_a_newer_pool_drafts_for_requests_that_run_too(
    make: Callable[..., DareProposer], pool: Path, tokenizer: str, runner: Runner
) -> None:
    drafter = make(pool)
    runner.add("r", TEXTS["users/a"][:4], {"dare_user": "u1"})
    before = runner.propose(drafter)["r"]
    assert before == TEXTS["users/a"][4 : 4 + MAX_DRAFTS]
    moved = [replace(document, group="users/new") for document in documents_of("users/a")]
    other = [
        Document(
            id=f"o{i}", token_ids=np.array([*TEXTS["users/a"][:4], 30, 31, 32], np.int32), group="users/a"
        )
        for i in range(8)
    ]
    build_pool([*moved, *other], tokenizer, pool, global_segment=False, overwrite=True)
    assert runner.propose(drafter)["r"] == before  # nobody has looked yet
    drafter._watch.look()  # type: ignore[union-attr]
    assert runner.propose(drafter)["r"] == before  # u1 has moved with its text
    runner.add("s", TEXTS["users/a"][:4], {"dare_group": "users/a"})
    assert runner.propose(drafter) == {"r": before, "s": [30, 31, 32]}
    assert drafter.errors == 0


def test_a_newer_pool_that_cannot_be_used_changes_nothing(
    make: Callable[..., DareProposer], pool: Path, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    drafter = make(pool)
    runner.add("r", TEXTS["users/a"][:4], {"dare_user": "u1"})
    before = runner.propose(drafter)
    (pool / "manifest.json").write_text("{}")
    with caplog.at_level("ERROR", logger="vllm"):
        for _ in range(3):
            drafter._watch.look()  # type: ignore[union-attr]
            assert runner.propose(drafter) == before
    assert sum("goes on drafting" in record.message for record in caplog.records) <= 1
    assert drafter.errors == 0


def test_requests_that_run_keep_the_wording_when_a_newer_pool_does_not_know_it(
    make: Callable[..., DareProposer], pool: Path, tokenizer: str, runner: Runner
) -> None:
    drafter = make(pool)
    pivots = np.array([3, 5], np.uint64)
    drafter._guards.learn_wording(pivots)
    wording_only = {"dare_group": "users/a", "dare_preset": "content"}
    runner.add("runs", PREFIX, wording_only)
    runner.propose(drafter)
    build_pool(documents_of("users/a"), tokenizer, pool, global_segment=False, overwrite=True)
    manifest = json.loads((pool / "manifest.json").read_text())
    (pool / "manifest.json").write_text(json.dumps({**manifest, "pivots": None}))
    drafter._watch.look()  # type: ignore[union-attr]
    runner.propose(drafter)
    runner.add("new", PREFIX, wording_only)
    runs, new = drafter.rules_of_batch()
    assert runs.relaxes
    assert not new.relaxes
    assert np.array_equal(drafter._guards.pivots, pivots)


def test_only_groups_with_text_in_the_pool_have_a_label_of_their_own(
    make: Callable[..., DareProposer],
    pool: Path,
    tokenizer: str,
    runner: Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(metrics_endpoint.DIRECTORY_VARIABLE, str(tmp_path))
    drafter = make(pool)
    groups = ["users/a", "made up", OTHER_GROUPS, NO_GROUP, "users/new"]
    for group in groups:
        runner.add(group, PREFIX, {"dare_group": group})
    runner.add("none", PREFIX)

    def labels() -> dict[str, str | None]:
        runner.propose(drafter)
        return {request_id: state.label for request_id, state in drafter._states.items()}

    others = dict.fromkeys(groups, OTHER_GROUPS)
    assert labels() == {**others, "users/a": "users/a", "none": None}
    build_pool(
        [replace(document, group="users/new") for document in documents_of("users/a")],
        tokenizer,
        pool,
        global_segment=False,
        overwrite=True,
    )
    drafter._watch.look()  # type: ignore[union-attr]
    labels()
    assert labels() == {**others, "users/new": "users/new", "none": None}
    assert drafter.errors == 0
    drafter.close()
