"""The draft budget, fresh from the start, on machines whose steps are slow for no reason.

Engines and chains are those of `test_budget_on_recorded_costs`; what is compared are the times without noise.
"""

from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.drafting.test_budget_on_recorded_costs import ENGINES, FIXED, Auto, World, run_fixed

STEPS = 500
SEEDS = range(4)
# Drafts pay 2 to 7 times here, and not at all there.
PAYING = [
    ("CPU, 1 at 0.0", "good"),
    ("CPU, 4 at 0.7", "good"),
    ("CPU, 16 at 0.0", "good"),
    ("CPU, 64 at 0.0", "good"),
    ("GPU, 1", "mixed"),
    ("GPU, 64", "mixed"),
]
DEAR = [("CPU, 4 at 0.7", "bad"), ("CPU, 16 at 0.0", "bad"), ("CPU, 64 at 0.7", "bad")]

# Tells for each step, given whether it has drafts, by how much it is slower.
Trouble = Callable[[bool], float]


def slow_first_drafts(random: np.random.Generator) -> Trouble:
    """The first one to five steps with drafts are slow, those without are not."""
    left, factor = int(random.integers(1, 6)), random.uniform(4, 10)

    def trouble(has_drafts: bool) -> float:
        nonlocal left
        left -= has_drafts
        return factor if has_drafts and left >= 0 else 1.0

    return trouble


def slow_beginning(random: np.random.Generator) -> Trouble:
    """The first 20 to 50 steps are slow."""
    length, factor = random.integers(20, 51), random.uniform(3, 10)
    factors = iter(np.where(np.arange(STEPS) < length, factor, 1.0))
    return lambda _: float(next(factors))


def slow_at_times(random: np.random.Generator) -> Trouble:
    """One step in twelve is slow."""
    return lambda _: random.uniform(3, 10) if random.random() < 1 / 12 else 1.0


def slower_later(_random: np.random.Generator) -> Trouble:
    """The machine gets slower halfway."""
    factors = iter(np.where(np.arange(STEPS) < STEPS // 2, 1.0, 2.0))
    return lambda _: float(next(factors))


TROUBLES = [slow_first_drafts, slow_beginning, slow_at_times, slower_later]


def shares(
    case: tuple[str, str],
    trouble: Callable[[np.random.Generator], Trouble],
    fixed: tuple[int, ...],
) -> list[float]:
    """The speed with each seed as a share of the best fixed length's."""
    engine, profile = ENGINES[case[0]], case[1]

    def share(seed: int) -> float:
        auto = Auto(seed, trouble(np.random.default_rng(seed)))
        rate = auto.run(engine, World(engine.sequences, profile, seed=seed), STEPS)
        return rate / max(
            run_fixed(engine, World(engine.sequences, profile, seed=seed), m, 0, STEPS) for m in fixed
        )

    return [share(seed) for seed in SEEDS]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("case", PAYING)
def test_drafts_that_pay_are_not_given_up(
    case: tuple[str, str], trouble: Callable[[np.random.Generator], Trouble]
) -> None:
    assert min(shares(case, trouble, FIXED)) > 0.9


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("case", DEAR)
def test_drafts_that_do_not_pay_cost_little(
    case: tuple[str, str], trouble: Callable[[np.random.Generator], Trouble]
) -> None:
    """As much as 30 steps at most."""
    assert min(shares(case, trouble, (0,))) > 0.94
