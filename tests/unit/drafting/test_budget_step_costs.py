"""Seconds of a step, learned from steps."""

from collections.abc import Callable

import numpy as np
import pytest

from vllm_dare.drafting.step_costs import StepCosts, StepLoad


def true_seconds(load: StepLoad) -> float:
    """A CPU: everything costs, and verification has its price."""
    verification = (0.3 + 0.1 * load.sequences + 0.1 * load.sampled) if load.drafts else 0.0
    return 2.0 + 0.2 * load.sequences + verification + 0.045 * load.drafts + 0.03 * load.prompt


def watch(
    costs: StepCosts,
    loads: list[StepLoad],
    seconds: Callable[[StepLoad], float] = true_seconds,
    steps: int = 400,
    spread: float = 0.15,
    seed: int = 0,
) -> None:
    """Observe steps with noise, of which one in thirty takes several times as long."""
    random = np.random.default_rng(seed)
    for step in range(steps):
        load = loads[step % len(loads)]
        noise = np.exp(random.normal(0, spread))
        if spread and random.random() < 1 / 30:
            noise *= 1 + random.pareto(1.5)
        costs.observe(seconds(load) * noise, load)


def predicted(costs: StepCosts, load: StepLoad) -> float:
    return float(costs.curve(load.sequences, load.sampled, load.drafts)[load.drafts])


LOADS = [StepLoad(b, 0, b * m) for b in (1, 4, 16, 40) for m in (0, 1, 4, 16)]


def test_nothing_is_known_at_first() -> None:
    assert not StepCosts().known


def test_drafts_cost_nothing_until_they_are_seen() -> None:
    costs = StepCosts()
    watch(costs, [StepLoad(4, 0, 0)])
    curve = costs.curve(4, 0, 64)
    assert curve == pytest.approx(np.full(65, true_seconds(StepLoad(4, 0, 0))), rel=0.1)


def test_loads_that_were_seen_are_predicted() -> None:
    costs = StepCosts()
    watch(costs, LOADS, steps=1200)
    for load in LOADS:
        assert predicted(costs, load) == pytest.approx(true_seconds(load), rel=0.1)


def test_loads_in_between_are_predicted() -> None:
    costs = StepCosts()
    watch(costs, LOADS, steps=1200)
    for load in [StepLoad(2, 0, 9), StepLoad(10, 0, 40), StepLoad(30, 0, 0), StepLoad(30, 0, 300)]:
        assert predicted(costs, load) == pytest.approx(true_seconds(load), rel=0.15)


def test_sampled_sequences_cost_more_to_verify() -> None:
    costs = StepCosts()
    sampled = [StepLoad(load.sequences, load.sequences, load.drafts) for load in LOADS]
    watch(costs, LOADS + sampled, steps=2400)
    for load in LOADS + sampled:
        assert predicted(costs, load) == pytest.approx(true_seconds(load), rel=0.12)


def test_prompts_are_told_from_drafts() -> None:
    """A busy server has a prompt in most of its steps."""
    costs = StepCosts()
    random = np.random.default_rng(1)
    loads = [
        StepLoad(16, 0, int(m), int(prompt))
        for m, prompt in zip(random.choice([0, 16, 64, 200], 300), random.integers(50, 800, 300), strict=True)
    ]
    watch(costs, loads, steps=1200)
    for drafts in (0, 64, 200):
        load = StepLoad(16, 0, drafts)
        assert predicted(costs, load) == pytest.approx(true_seconds(load), rel=0.2)


def test_a_gpu_that_is_flat_first_and_steep_then() -> None:
    def seconds(load: StepLoad) -> float:
        return 10.0 if load.sequences + load.drafts <= 256 else 10.0 + 0.05 * (load.drafts - 240)

    costs = StepCosts()
    loads = [StepLoad(16, 0, m) for m in (0, 16, 64, 128, 200, 240, 400, 800, 1500)]
    watch(costs, loads, seconds, steps=900)
    for load in loads:
        assert predicted(costs, load) == pytest.approx(seconds(load), rel=0.15)


def test_one_slow_step_changes_little() -> None:
    costs = StepCosts()
    watch(costs, LOADS, spread=0)
    before = predicted(costs, LOADS[5])
    for _ in range(4):
        costs.observe(100 * before, LOADS[5])
    watch(costs, LOADS, spread=0, steps=16)
    assert predicted(costs, LOADS[5]) == pytest.approx(before, rel=0.25)


def test_a_slow_first_step_of_a_load_is_forgotten() -> None:
    costs = StepCosts()
    watch(costs, LOADS[:4], steps=16)
    costs.observe(1000.0, StepLoad(1, 0, 8))
    watch(costs, [*LOADS[:4], StepLoad(1, 0, 8)], steps=100)
    for load in (LOADS[0], StepLoad(1, 0, 8)):
        assert predicted(costs, load) == pytest.approx(true_seconds(load), rel=0.1)


def test_a_load_that_does_not_come_again_is_not_unlearned() -> None:
    costs = StepCosts()
    watch(costs, [StepLoad(16, 0, 0), StepLoad(16, 0, 64), StepLoad(16, 0, 256)])
    watch(costs, [StepLoad(16, 0, 256)], steps=3000)
    assert predicted(costs, StepLoad(16, 0, 0)) == pytest.approx(true_seconds(StepLoad(16, 0, 0)), rel=0.1)


def test_a_machine_that_gets_slower_is_noticed() -> None:
    costs = StepCosts()
    loads = [StepLoad(16, 0, m) for m in (0, 16, 64, 256)]
    watch(costs, loads)
    watch(costs, loads, lambda load: 3 * true_seconds(load), steps=800, seed=1)
    for load in loads:
        assert predicted(costs, load) == pytest.approx(3 * true_seconds(load), rel=0.12)


def test_more_drafts_never_cost_less() -> None:
    costs = StepCosts()
    random = np.random.default_rng(2)
    for _ in range(200):
        costs.observe(float(random.random()) + 0.01, StepLoad(8, 0, int(random.integers(0, 600))))
        assert (np.diff(costs.curve(8, 0, 1000)) >= 0).all()


def test_the_table_stays_small() -> None:
    costs = StepCosts()
    for sequences in range(1, 600, 3):
        for drafts in range(0, 2000, 100):
            costs.observe(1.0, StepLoad(sequences, 0, drafts))
    assert len(costs._rows) == 128
    assert sorted(costs._rows.values()) == list(range(128))
    assert predicted(costs, StepLoad(100, 0, 500)) == pytest.approx(1.0, rel=0.05)


def test_steps_in_which_kernels_are_compiled_are_forgotten() -> None:
    """The first steps with drafts, and the first without, may take seconds."""
    costs = StepCosts()
    for load in (LOADS[0], LOADS[0], LOADS[3], LOADS[3]):
        costs.observe(1000.0, load)
    watch(costs, LOADS[:4], steps=40)
    for load in LOADS[:4]:
        assert predicted(costs, load) == pytest.approx(true_seconds(load), rel=0.15)


def test_what_was_measured_in_a_slow_time_is_forgotten_together() -> None:
    """But other numbers of sequences are not."""
    costs = StepCosts()
    watch(costs, LOADS[:4], steps=40)
    watch(costs, LOADS[8:12], lambda load: 8 * true_seconds(load), steps=40)
    watch(costs, LOADS[8:9], steps=1)
    assert costs.surprises == 1
    assert costs.steps_with_drafts == 30
    assert predicted(costs, LOADS[11]) < 1.5 * true_seconds(LOADS[11])
    assert predicted(costs, LOADS[3]) == pytest.approx(true_seconds(LOADS[3]), rel=0.15)


def test_a_machine_that_gets_slower_does_not_make_drafts_dearer() -> None:
    """All steps have drafts since it did; what they cost compared with none stays about what it was."""
    costs = StepCosts()
    watch(costs, LOADS[8:12])
    before = predicted(costs, LOADS[11]) / predicted(costs, LOADS[8])
    watch(costs, LOADS[11:12], lambda load: 2 * true_seconds(load), steps=60, seed=1)
    assert predicted(costs, LOADS[11]) == pytest.approx(2 * true_seconds(LOADS[11]), rel=0.15)
    assert predicted(costs, LOADS[11]) / predicted(costs, LOADS[8]) == pytest.approx(before, rel=0.25)
