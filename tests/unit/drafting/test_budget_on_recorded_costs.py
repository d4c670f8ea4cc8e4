"""The draft budget on step times of real engines, against every fixed length and no drafts.

`recorded_costs.json` holds medians of a vLLM CPU engine (0.32, 6 M parameters, float32, eager, 2 cores; see
`tests/benchmarks/step_costs.py`); the GPU is made up: flat, with steps of 8 tokens where CUDA graphs are
padded, and dearer beyond the largest graph. Sequences differ in how well they are drafted from step to
step. Measured times are noisy with a heavy tail; what is compared are the times without the noise.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vllm_dare.drafting.budget import DraftBudget, kind_of
from vllm_dare.drafting.step_costs import StepLoad

CHAIN = 16
LOOK_UP_SECONDS = 12e-6
WARM_UP, STEPS = 200, 800
FIXED = (0, 1, 2, 4, 8, 12, 16)
RECORDED = json.loads((Path(__file__).parent / "recorded_costs.json").read_text())
# Beta distributions of a draft token's probability of being right.
PROFILES = {"good": (8.0, 0.6), "mixed": (0.8, 0.6), "bad": (0.5, 3.0)}

Curve = Callable[[int], float]


@dataclass(frozen=True)
class Engine:
    """Seconds of a step by its number of drafts."""

    sequences: int
    sampled: bool
    seconds: Curve


def recorded(row: dict[str, float]) -> Engine:
    sequences = int(row["sequences"])
    drafts = np.array(RECORDED["drafts_per_sequence"]) * sequences
    seconds = np.array(row["milliseconds"]) / 1000

    def curve(number: int) -> float:
        if number == 0:
            return float(seconds[0])
        return float(np.interp(number, drafts[1:], seconds[1:]))

    return Engine(sequences, row["temperature"] > 0, curve)


def gpu(sequences: int) -> Engine:
    def curve(number: int) -> float:
        tokens = sequences + number
        if tokens <= 512:
            return 0.012 * (1 + 0.1 * np.ceil(tokens / 8) * 8 / 512)
        return 0.0162 * max(1.0, np.ceil(tokens / 256) * 256 / 1024)

    return Engine(sequences, False, curve)


ENGINES = {
    **{f"CPU, {row['sequences']} at {row['temperature']}": recorded(row) for row in RECORDED["curves"]},
    **{f"GPU, {sequences}": gpu(sequences) for sequences in (1, 16, 64, 256)},
}


class World:
    """Chains of drafts: what is predicted of them and how far they are right.

    `confidence` other than 1 makes predictions wrong: a token that is predicted with probability p is right
    with p to this power.
    """

    def __init__(self, sequences: int, profile: str, confidence: float = 1.0, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.sequences, self.profile, self.confidence = sequences, PROFILES[profile], confidence

    def step(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Predicted survivals float32[sequences, CHAIN] and how many tokens of each chain are right."""
        quality = self.random.beta(*self.profile, size=(self.sequences, 1))
        spread = self.random.normal(0, 0.05, (self.sequences, CHAIN))
        conditional = np.clip(quality + spread, 0.01, 0.999)
        right = self.random.random((self.sequences, CHAIN)) < conditional**self.confidence
        survivals = np.cumprod(conditional, axis=1).astype(np.float32)
        return survivals, np.where(right.all(axis=1), CHAIN, right.argmin(axis=1))


class Tally:
    """Tokens written and seconds taken, without the noise."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0.0, 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def run_fixed(engine: Engine, world: World, length: int, skip: int = WARM_UP, steps: int = STEPS) -> float:
    """Tokens per second with chains of a fixed length, after skipping steps of the world."""
    tally = Tally()
    for _ in range(skip):
        world.step()
    look_up = LOOK_UP_SECONDS * engine.sequences if length else 0.0
    for _ in range(steps):
        _, right = world.step()
        tally.tokens += engine.sequences + np.minimum(right, length).sum()
        tally.seconds += engine.seconds(length * engine.sequences) + look_up
    return tally.rate


class Auto:
    """A budget at work.

    Args:
        trouble: tells for each step, given whether it has drafts, by how much more it is slower than usual.
    """

    def __init__(self, seed: int = 0, trouble: Callable[[bool], float] = lambda _: 1.0) -> None:
        self.budget = DraftBudget()
        self.random, self.trouble = np.random.default_rng(seed), trouble

    def run(self, engine: Engine, world: World, steps: int) -> float:
        """Tokens per second over so many steps."""
        tally = Tally()
        kinds = np.full(engine.sequences, kind_of(engine.sampled, relaxed=False))
        lengths = np.full(engine.sequences, CHAIN)
        for _ in range(steps):
            survivals, right = world.step()
            look_up = LOOK_UP_SECONDS * engine.sequences
            if self.budget.resting(engine.sequences) and self.budget.rests():
                look_up, sent = 0.0, np.zeros_like(lengths)
            else:
                sent = self.budget.choose(survivals, lengths, kinds, kinds < 0, look_up)
            drafts, accepted = int(sent.sum()), np.minimum(right, sent)
            seconds = engine.seconds(drafts)
            load = StepLoad(engine.sequences, engine.sequences * engine.sampled, drafts)
            self.budget.costs.observe(seconds * self.noise() * self.trouble(drafts > 0), load)
            self.budget.calibration.observe(survivals, kinds, sent, accepted)
            tally.tokens += engine.sequences + accepted.sum()
            tally.seconds += seconds + look_up
        return tally.rate

    def noise(self) -> float:
        """Most steps vary by an eighth; of a hundred, three take several times as long."""
        noise = float(np.exp(self.random.normal(0, 0.12)))
        if self.random.random() < 0.03:
            noise *= min(1 + self.random.pareto(1.5), 30)
        return noise


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_it_keeps_up_with_the_best_fixed_length(engine: Engine, profile: str) -> None:
    """Within 5 % of the best, and never 2 % behind no drafts."""
    fixed = {length: run_fixed(engine, World(engine.sequences, profile, seed=1), length) for length in FIXED}
    auto, world = Auto(), World(engine.sequences, profile, seed=1)
    auto.run(engine, world, WARM_UP)
    rate = auto.run(engine, world, STEPS)
    assert rate > 0.95 * max(fixed.values())
    assert rate > 0.98 * fixed[0]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_the_warm_up_costs_few_steps(engine: Engine) -> None:
    """Where drafts never pay, what it tries at first costs as much as 12 steps at most."""
    rate = Auto().run(engine, World(engine.sequences, "bad"), WARM_UP)
    assert rate > (1 - 12 / WARM_UP) * run_fixed(engine, World(engine.sequences, "bad"), 0)


@pytest.mark.parametrize("confidence", [0.3, 3.0])
@pytest.mark.parametrize("name", ["CPU, 4 at 0.0", "CPU, 16 at 0.7", "GPU, 64"])
def test_it_sees_through_wrong_predictions(name: str, confidence: float) -> None:
    """Drafts that are right more, or less, often than predicted."""
    engine = ENGINES[name]
    fixed = [run_fixed(engine, World(engine.sequences, "mixed", confidence), length) for length in FIXED]
    auto, world = Auto(), World(engine.sequences, "mixed", confidence)
    auto.run(engine, world, WARM_UP)
    assert auto.run(engine, world, STEPS) > 0.95 * max(fixed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("GPU, 16", "CPU, 16 at 0.0"),
        ("CPU, 16 at 0.0", "GPU, 16"),
        ("CPU, 1 at 0.0", "CPU, 64 at 0.0"),
        ("CPU, 64 at 0.0", "CPU, 1 at 0.0"),
        ("CPU, 4 at 0.7", "CPU, 16 at 0.0"),
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_it_follows_another_load_within_300_steps(before: str, after: str, profile: str) -> None:
    """More or fewer sequences, or a machine on which drafts cost what they did not."""
    auto = Auto()
    auto.run(ENGINES[before], World(ENGINES[before].sequences, profile), STEPS)
    engine = ENGINES[after]
    fixed = [run_fixed(engine, World(engine.sequences, profile), length) for length in FIXED]
    world = World(engine.sequences, profile)
    auto.run(engine, world, 300)
    assert auto.run(engine, world, STEPS) > 0.95 * max(fixed)


@pytest.mark.parametrize("name", ["CPU, 16 at 0.0", "GPU, 64"])
@pytest.mark.parametrize(("before", "after"), [(1.0, 12.0), (12.0, 1.0)])
def test_it_follows_other_text_within_300_steps(name: str, before: float, after: float) -> None:
    """Predictions that stop, or start, to be right."""
    engine, auto = ENGINES[name], Auto()
    auto.run(engine, World(engine.sequences, "mixed", before), STEPS)
    fixed = [run_fixed(engine, World(engine.sequences, "mixed", after), length) for length in FIXED]
    world = World(engine.sequences, "mixed", after)
    auto.run(engine, world, 300)
    assert auto.run(engine, world, STEPS) > 0.95 * max(fixed)
