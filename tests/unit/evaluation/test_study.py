"""Studies: which settings are compared, and what each gets to draft from."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import DareError
from vllm_dare.evaluation.groupings import own_scheme, read_schemes
from vllm_dare.evaluation.order import BLOCK_DOCUMENTS, Order, run_order
from vllm_dare.evaluation.split import Split
from vllm_dare.evaluation.study import Scheme, Study, parse_sources, run_study

MakeCorpus = Callable[..., Any]

LOW = [5, 6, 7, 8, 9, 10, 11, 12]
HIGH = [5, 6, 57, 58, 59, 60, 61, 62]
OUTPUTS = {"a": LOW, "b": HIGH, "c": LOW, "d": HIGH, "e": LOW, "f": HIGH}
GROUPS = {name: "low" if output == LOW else "high" for name, output in OUTPUTS.items()}
SPLIT = Split("train", "test", ["a", "b", "c", "d"], ["e", "f"], 0)
GROUP, GLOBAL = ("own", "group"), ("own", "global")


def study(make_corpus: MakeCorpus, **options: Any) -> Study:
    corpus = make_corpus(OUTPUTS, GROUPS)
    defaults = {
        "corpus": corpus,
        "split": SPLIT,
        "schemes": [own_scheme(corpus)],
        "max_drafts": [8],
        "sources": [GLOBAL],
        "pool_sizes": [4],
    }
    return Study(**(defaults | options))


def test_sources_are_named_in_one_order_and_own_text_always_drafts() -> None:
    assert parse_sources("own") == ("own",)
    assert parse_sources("global") == parse_sources("global+own") == GLOBAL
    assert parse_sources("group+global+own") == ("own", "group", "global")
    with pytest.raises(DareError, match="not 'live'"):
        parse_sources("own+live")


def test_settings_that_mean_the_same_are_one(make_corpus: MakeCorpus) -> None:
    schemes = [Scheme("x", GROUPS), Scheme("y", GROUPS)]
    found = study(
        make_corpus, schemes=schemes, sources=[("own",), GLOBAL, GROUP], pool_sizes=[2, 4], max_drafts=[4, 8]
    ).settings()
    of = {sources: [s for s in found if s.sources == sources] for sources in (("own",), GLOBAL, GROUP)}
    assert [len(settings) for settings in of.values()] == [2, 4, 8]  # lengths, with sizes, with schemes
    assert len(found) == 14


def test_only_the_group_drafts_where_only_it_is_a_source(make_corpus: MakeCorpus) -> None:
    outcomes = list(run_study(study(make_corpus, sources=[GROUP, GLOBAL, ("own",)])))
    steps = {outcome.setting.sources: outcome.result.tally.steps for outcome in outcomes}
    # 5 | the rest, for either text; without groups each draft after 6 is wrong for one of them
    assert steps[GROUP] == 4
    assert steps[GROUP] < steps[GLOBAL] < steps["own",] == 16
    by_source = {o.setting.sources: o.as_dict()["accepted_by_source"] for o in outcomes}
    assert by_source[GROUP]["group"] == 1.0 and by_source[GLOBAL]["global"] == 1.0


def test_a_pool_of_the_first_documents(make_corpus: MakeCorpus) -> None:
    outcomes = list(run_study(study(make_corpus, pool_sizes=[1, 4])))
    assert [outcome.pool.documents for outcome in outcomes if outcome.pool] == [1, 4]
    assert [outcome.pool.tokens for outcome in outcomes if outcome.pool] == [8, 32]
    assert outcomes[0].pool is not None and (outcomes[0].pool.disk_bytes or 0) > 0
    assert outcomes[0].as_dict()["pool"]["bytes_per_token"] > 4


def test_progress_counts_documents_over_all_settings(make_corpus: MakeCorpus) -> None:
    told: list[tuple[str, int, int]] = []
    list(run_study(study(make_corpus, max_drafts=[4, 8]), lambda *what: told.append(what)))
    assert told[-1][1:] == (4, 4)
    assert "dare, own+global, drafts of 8" in told[-1][0]


def test_a_limit_on_held_out_documents(make_corpus: MakeCorpus) -> None:
    (outcome,) = run_study(study(make_corpus, limit=1))
    assert outcome.result.tally.texts == 1


@pytest.mark.skipif(
    importlib.util.find_spec("arctic_inference") is None, reason="arctic-inference is not installed"
)
def test_peers_walk_the_same_texts(make_corpus: MakeCorpus) -> None:
    outcomes = list(run_study(study(make_corpus, peers=["arctic", "ngram"])))
    names = [outcome.setting.drafter for outcome in outcomes]
    assert names == ["dare", "arctic", "arctic, vLLM's limits", "ngram"]
    assert {outcome.result.tally.tokens for outcome in outcomes} == {16}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_drafts": [0]}, "--draft takes lengths from 1 to 128"),
        ({"max_drafts": [129]}, "--draft takes lengths from 1 to 128"),
        ({"pool_sizes": [5]}, "--pool-size takes numbers from 1 to 4"),
        ({"pool_sizes": [0]}, "--pool-size takes numbers from 1 to 4"),
        ({"peers": ["medusa"]}, "--peers takes arctic and ngram, separated by commas, not 'medusa'"),
        ({"sources": [GROUP], "schemes": [Scheme("s", {})]}, "No document that could draft has a group"),
        (
            {"sources": [GROUP], "schemes": [Scheme("s", {"a": "x", "f": "y"})]},
            "The group 'y' of the held-out document 'f' .* has no text in the train part",
        ),
    ],
)
def test_settings_that_cannot_work(make_corpus: MakeCorpus, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DareError, match=sentence):
        study(make_corpus, **options)


def test_groupings_from_files(tmp_path: Path) -> None:
    path = tmp_path / "clusters.csv.csv"
    path.write_text("user,group\na,x\nb,y\n")
    (scheme,) = read_schemes([path], "train_users")
    assert scheme == Scheme("clusters", {"a": "x", "b": "y"})
    both = tmp_path / "both.jsonl"
    both.write_text('{"user": 1, "group": "x"}\n{"item": 1, "group": "y"}\n')
    assert read_schemes([both], "train_items")[0].group_of == {"1": "y"}
    with pytest.raises(DareError, match="assigns users and items, and nothing says which"):
        read_schemes([both], "train")
    with pytest.raises(DareError, match="have the same name"):
        read_schemes([path, path], "train_users")


def test_in_order_each_document_is_drafted_for_from_those_before_it(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(OUTPUTS, GROUPS)
    order = Order(corpus, [own_scheme(corpus)], [8], [GROUP, ("own",)])
    grouped, own = run_order(order)
    # the first text of either group finds nothing, the others nearly all but their first token
    assert 8 + 8 + 4 * 2 <= grouped.result.tally.steps < 8 + 8 + 4 * 4
    assert grouped.as_dict()["accepted_by_source"]["live"] == 1.0
    assert own.result.tally.steps == 48


def test_in_order_blocks_add_up(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus({str(i): LOW for i in range(BLOCK_DOCUMENTS + 5)})
    (outcome,) = run_order(Order(corpus, [own_scheme(corpus)], [8], [GLOBAL]))
    assert [tokens for tokens, _ in outcome.blocks] == [800, 40]
    assert sum(steps for _, steps in outcome.blocks) == outcome.result.tally.steps
    assert outcome.as_dict()["blocks"][1] == {"from": 100, "tokens": 40, "steps": 10, "tokens_per_step": 4.0}


def test_in_order_without_groups_the_source_group_is_refused(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(OUTPUTS)
    with pytest.raises(DareError, match="No document that could draft has a group"):
        Order(corpus, [own_scheme(corpus)], [8], [GROUP])
