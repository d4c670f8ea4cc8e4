"""Survival probabilities after what verification accepted."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.drafting.calibration import Calibration

CHAIN = 8


def chains(probability: float, number: int) -> npt.NDArray[np.float32]:
    """Chains whose every token is predicted with this probability given those before."""
    return np.tile(np.cumprod(np.full(CHAIN, probability)), (number, 1)).astype(np.float32)


def verify(
    calibration: Calibration, predicted: float, true: float, number: int, kind: int = 0, seed: int = 0
) -> None:
    """Have chains verified whose tokens are right with probability `true`."""
    right = np.random.default_rng(seed).random((number, CHAIN)) < true
    accepted = np.where(right.all(axis=1), CHAIN, right.argmin(axis=1))
    verified = np.full(number, CHAIN)
    calibration.observe(chains(predicted, number), np.full(number, kind), verified, accepted)


def corrected(calibration: Calibration, predicted: float, kind: int = 0) -> npt.NDArray[np.float32]:
    return calibration.correct(chains(predicted, 1), np.array([CHAIN]), np.array([kind]))[0]


def test_a_prediction_stands_until_something_is_known() -> None:
    assert corrected(Calibration(2), 0.7) == pytest.approx(0.7 ** np.arange(1, 9), rel=1e-5)


@pytest.mark.parametrize(("predicted", "true"), [(0.9, 0.6), (0.5, 0.8), (0.97, 0.99), (0.2, 0.05)])
def test_it_moves_to_what_is_seen(predicted: float, true: float) -> None:
    calibration = Calibration(2)
    verify(calibration, predicted, true, 2000)
    assert corrected(calibration, predicted)[0] == pytest.approx(true, abs=0.04)
    assert corrected(calibration, predicted)[2] == pytest.approx(true**3, abs=0.08)


def test_kinds_of_requests_are_kept_apart() -> None:
    calibration = Calibration(2)
    verify(calibration, 0.8, 0.3, 1000, kind=1)
    assert corrected(calibration, 0.8, kind=0)[0] == pytest.approx(0.8)
    assert corrected(calibration, 0.8, kind=1)[0] == pytest.approx(0.3, abs=0.05)


def test_other_probabilities_are_kept_apart() -> None:
    calibration = Calibration(1)
    verify(calibration, 0.95, 0.5, 1000)
    assert corrected(calibration, 0.5)[0] == pytest.approx(0.5)


def test_tokens_after_the_first_wrong_one_say_nothing() -> None:
    calibration = Calibration(1)
    survivals = np.array([[0.9, 0.45, 0.225]], dtype=np.float32)  # 0.9, then 0.5 twice
    for _ in range(500):
        calibration.observe(survivals, np.array([0]), np.array([3]), np.array([0]))
    after = calibration.correct(survivals, np.array([3]), np.array([0]))[0]
    assert after[0] < 0.1
    assert after[1] / after[0] == pytest.approx(0.5)


def test_tokens_that_were_not_sent_say_nothing() -> None:
    calibration = Calibration(1)
    calibration.observe(chains(0.9, 1), np.array([0]), np.array([0]), np.array([0]))
    assert corrected(calibration, 0.9)[0] == pytest.approx(0.9)


def test_old_observations_fade() -> None:
    calibration = Calibration(1)
    verify(calibration, 0.8, 0.9, 5000)
    verify(calibration, 0.8, 0.4, 2000, seed=1)
    assert corrected(calibration, 0.8)[0] == pytest.approx(0.4, abs=0.06)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=CHAIN),
    st.integers(0, CHAIN),
    st.integers(0, 2**32 - 1),
)
def test_corrected_survivals_never_rise_and_end_with_the_chain(
    conditionals: list[float], length: int, seed: int
) -> None:
    calibration = Calibration(1)
    verify(calibration, 0.6, 0.9, 50, seed=seed)
    verify(calibration, 0.95, 0.2, 50, seed=seed)
    survivals = np.cumprod(np.array([conditionals], dtype=np.float32), axis=1)
    length = min(length, len(conditionals))
    after = calibration.correct(survivals, np.array([length]), np.array([0]))[0]
    assert (np.diff(after) <= 0).all()
    assert ((after >= 0) & (after <= 1)).all()
    assert (after[length:] == 0).all()
