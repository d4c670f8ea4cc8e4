"""The draft budget: the best beginnings against brute force, trials and rests."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.drafting import budget as module
from vllm_dare.drafting.budget import DraftBudget, kind_of
from vllm_dare.drafting.step_costs import StepLoad

GREEDY = kind_of(sampled=False, relaxed=False)


def with_costs(curve: Any) -> DraftBudget:
    """A budget that knows what steps cost: `curve(drafts)` seconds."""
    budget = DraftBudget()
    budget.costs = SimpleNamespace(  # type: ignore[assignment]
        known=True,
        steps_with_drafts=100,
        surprises=0,
        curve=lambda _sequences, _sampled, most: np.array([float(curve(m)) for m in range(most + 1)]),
    )
    budget._largest = 10**6
    return budget


def choose(
    budget: DraftBudget, survivals: Any, look_up_seconds: float = 0.0, whole: Any = False
) -> list[int]:
    rows = np.array(survivals, dtype=np.float32)
    lengths = (rows > 0).sum(axis=1).astype(np.int64)
    kinds = np.full(len(rows), GREEDY)
    return budget.choose(rows, lengths, kinds, np.full(len(rows), whole), look_up_seconds).tolist()


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_GAPS", (10**6, 10**6, 10**6))


probabilities = st.floats(0.0625, 1, width=32)
batches = st.lists(st.lists(probabilities, max_size=4), min_size=1, max_size=4)
curves = st.lists(st.floats(0, 2), min_size=17, max_size=17).map(lambda steps: 1 + np.cumsum(steps))


@pytest.mark.usefixtures("no_trials")
@given(conditionals=batches, seconds=curves)
def test_no_beginnings_of_the_chains_promise_more(
    conditionals: list[list[float]], seconds: np.ndarray
) -> None:
    chains = [np.cumprod(np.array(chain)) for chain in conditionals]
    survivals = np.zeros((len(chains), 4))
    for row, chain in zip(survivals, chains, strict=True):
        row[: len(chain)] = chain

    def rate(lengths: Any) -> float:
        expected = sum(chain[:length].sum() for chain, length in zip(chains, lengths, strict=True))
        return (len(chains) + expected) / seconds[sum(lengths)]

    chosen = choose(with_costs(lambda m: seconds[m]), survivals)
    best = max(map(rate, itertools.product(*(range(len(chain) + 1) for chain in chains))))
    assert rate(chosen) == pytest.approx(best, rel=1e-5)


@pytest.mark.usefixtures("no_trials")
def test_whole_chains_go_out_where_they_cost_nothing() -> None:
    assert choose(with_costs(lambda _: 1.0), [[0.9, 0.1, 0.01], [0.5, 0.5, 0]]) == [3, 2]


@pytest.mark.usefixtures("no_trials")
def test_nothing_goes_out_where_a_draft_costs_as_much_as_a_step() -> None:
    assert choose(with_costs(lambda m: 1.0 + m), [[0.9, 0.8], [0.7, 0.6]]) == [0, 0]


@pytest.mark.usefixtures("no_trials")
def test_the_batch_shares_what_is_worth_sending() -> None:
    """Two tokens for a step that costs 1, and 0.2 for each draft: those above about 0.4 pay."""
    chosen = choose(with_costs(lambda m: 1.0 + 0.2 * m), [[0.95, 0.9, 0.85], [0.3, 0.2, 0.1]])
    assert chosen == [3, 0]


@pytest.mark.usefixtures("no_trials")
def test_of_equal_tokens_the_first_are_taken() -> None:
    seconds = [1.0, 1.0, 1.0, 9.0, 9.0]
    assert choose(with_costs(lambda m: seconds[m]), [[0.5, 0.5], [0.5, 0.5]]) == [2, 0]


@pytest.mark.usefixtures("no_trials")
def test_chains_that_must_be_whole_are() -> None:
    """And what they cost leaves less for the others: the fifth token and those after it are dear."""
    curve = [1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0]
    survivals = [[0.1, 0.01, 0.001], [0.9, 0.8, 0.7]]
    assert choose(with_costs(lambda m: curve[m]), survivals) == [1, 3]
    assert choose(with_costs(lambda m: curve[m]), survivals, whole=[True, False]) == [3, 1]
    assert choose(with_costs(lambda m: 1.0 + 9 * m**4), survivals, whole=[True, False]) == [3, 0]
    assert choose(DraftBudget(), [[0.5] * 20, [0.9] * 20], whole=[True, False]) == [20, 8]


def test_before_a_step_is_timed_likely_tokens_go_out() -> None:
    """But at least one, and at most four a sequence."""
    assert choose(DraftBudget(), [[0.6, 0.1], [0.9, 0.8]]) == [1, 2]
    assert choose(DraftBudget(), [[0.4, 0.1], [0.3, 0.2]]) == [1, 0]
    assert choose(DraftBudget(), [[0.9] * 6, [0.95] * 6]) == [2, 6]


def test_the_number_of_drafts_grows_by_steps() -> None:
    """What four times as many cost is not known; a wrong guess must not cost more than that."""
    budget, sent = DraftBudget(), [0]
    for _ in range(12):
        sent.append(sum(choose(budget, [[0.9] * 100])))
        assert sent[-1] <= max(4, 4 * max(sent[:-1]))
        budget.costs.observe(1.0, StepLoad(1, 0, sent[-1]))
    assert max(sent) == 100


def test_the_same_reports_give_the_same_choices() -> None:
    def run() -> list[list[int]]:
        budget = DraftBudget()
        random = np.random.default_rng(0)
        chosen = []
        for _ in range(100):
            survivals = np.cumprod(random.random((3, 5), dtype=np.float32), axis=1)
            chosen.append(choose(budget, survivals, 1e-5))
            budget.costs.observe(1 + 0.1 * sum(chosen[-1]), StepLoad(3, 0, sum(chosen[-1])))
        return chosen

    assert run() == run()


def test_in_the_end_trials_cost_less_than_a_percent_of_the_time() -> None:
    """Drafts that are always right and cost little: every trial of fewer loses something."""
    budget = with_costs(lambda m: 1.0 + 0.01 * m)
    best, seconds, lost = 0, 0.0, 0.0
    for step in range(5000):
        drafts = sum(choose(budget, np.ones((1, 8))))
        if step >= 500:  # trials come sooner at first
            best = max(best, drafts)
            seconds += 1 + 0.01 * drafts
            lost += 1 + 0.01 * drafts - (1 + drafts) / (9 / 1.08)
    assert best == 8
    assert 0.002 < lost / seconds < 0.008


def tries(budget: DraftBudget, steps: int) -> list[int]:
    """The steps with drafts where they never pay."""
    return [step for step in range(steps) if sum(choose(budget, [[0.4, 0.2]]))]


def test_what_does_not_pay_is_tried_ever_less_often() -> None:
    gaps = np.diff(tries(with_costs(lambda m: 1.0 + 9.0 * m), 2000))
    assert gaps[0] <= 4
    assert (np.diff(gaps) >= 0).all()
    assert gaps[-1] == 256


def test_what_does_not_pay_is_tried_soon_again_where_costs_were_wrong() -> None:
    budget = with_costs(lambda m: 1.0 + 9.0 * m)
    assert not [step for step in tries(budget, 500) if 300 < step < 310]
    budget.costs.surprises += 1
    assert len(tries(budget, 10)) >= 2


def test_drafts_are_not_given_up_before_some_steps_had_them() -> None:
    budget = with_costs(lambda m: 1.0 + 9.0 * m)
    budget.costs.steps_with_drafts = 2
    assert choose(budget, [[0.9, 0.4]]) == [1]
    budget.costs.steps_with_drafts = 3
    assert choose(budget, [[0.9, 0.4]]) == [0]


def rests(budget: DraftBudget, sequences: int) -> bool:
    return budget.resting(sequences) and budget.rests()


def test_look_ups_rest_while_they_do_not_pay_and_come_back_when_they_do() -> None:
    budget = with_costs(lambda m: 1.0 + m)

    def looks(steps: int, survival: float) -> int:
        looked = 0
        for _ in range(steps):
            if not rests(budget, 1):
                looked += 1
                choose(budget, [[survival, survival / 2]], look_up_seconds=0.1)
        return looked

    looks(500, 0.1)
    assert looks(1024, 0.1) == 4
    budget.costs.curve = lambda _sequences, _sampled, most: np.ones(most + 1)  # type: ignore[method-assign]
    looks(257, 0.9)
    assert looks(1000, 0.9) == 1000


def test_look_ups_rest_only_at_the_load_where_they_do_not_pay() -> None:
    budget = with_costs(lambda m: 1.0 + m)
    for _ in range(100):
        if not rests(budget, 2):
            choose(budget, [[0.1], [0.1]], look_up_seconds=0.1)
    assert budget.resting(3)
    assert not budget.resting(1)


def test_look_ups_that_find_nothing_rest_too() -> None:
    budget = with_costs(lambda _: 1.0)
    looked = 0
    for _ in range(5000):
        if not rests(budget, 1):
            looked += 1
            choose(budget, [[0.0, 0.0]], look_up_seconds=0.01)
    assert looked < 50
