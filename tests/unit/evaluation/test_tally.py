"""What steps add up to."""

from collections.abc import Sequence

import numpy as np
import pytest

from vllm_dare.drafting.drafter import Origin
from vllm_dare.evaluation.tally import NUM_BINS, Tally
from vllm_dare.evaluation.walk import Chain, Step


def step(
    num_drafts: int,
    accepted: int,
    judged: int | None = None,
    survivals: Sequence[float] | None = None,
    origins: Sequence[Origin] | None = None,
    match: int | None = None,
) -> Step:
    chain = Chain(
        np.zeros(num_drafts, np.int32),
        None if survivals is None else np.array(survivals, np.float32),
        None if origins is None else np.array(origins, np.int8),
        match,
    )
    return Step(chain, accepted, num_drafts if judged is None else judged, accepted + 1, 2000)


def tally(*steps: Step) -> Tally:
    found = Tally(4)
    for one in steps:
        found.add(one)
    return found


def test_tokens_and_drafts_per_step() -> None:
    figures = tally(Step(None, 0, 0, 1, 0), step(4, 2), step(2, 2), step(0, 0)).figures()
    assert (figures["tokens"], figures["steps"]) == (1 + 3 + 3 + 1, 4)
    assert figures["tokens_per_step"] == 2.0
    assert figures["drafted_per_step"] == 1.5
    assert figures["acceptance_rate"] == pytest.approx(4 / 6)


def test_acceptance_by_position_is_of_all_chains_and_survival_of_those_that_are_so_long() -> None:
    figures = tally(step(4, 3), step(1, 1), step(0, 0)).figures()
    assert figures["acceptance_by_position"] == [1.0, 0.5, 0.5, 0.0]
    assert figures["observed_survival_by_position"] == [1.0, 1.0, 1.0, 0.0]


def test_positions_that_the_text_cannot_judge_do_not_count_as_wrong() -> None:
    figures = tally(step(4, 2, judged=2, survivals=[0.9, 0.9, 0.9, 0.9])).figures()
    assert figures["observed_survival_by_position"] == [1.0, 1.0, None, None]
    assert sum(found["tokens"] for found in figures["reliability"]["bins"]) == 2


def test_shares_by_source() -> None:
    own, group = Origin.OWN, Origin.GROUP
    figures = tally(step(3, 1, origins=[own, group, group]), step(1, 1, origins=[group])).figures()
    assert figures["drafted_by_source"] == {"own": 0.25, "group": 0.75, "global": 0.0, "live": 0.0}
    assert figures["accepted_by_source"] == {"own": 0.5, "group": 0.5, "global": 0.0, "live": 0.0}


def test_what_a_drafter_does_not_tell_is_none() -> None:
    figures = tally(step(2, 1)).figures()
    for name in ("reliability", "accepted_by_source", "match_lengths", "predicted_survival_by_position"):
        assert figures[name] is None


def test_match_lengths() -> None:
    figures = tally(step(1, 0, match=2), step(1, 0, match=2), step(1, 0, match=32)).figures()
    assert figures["match_lengths"] == {"mean": 12.0, "median": 2, "chains": {"2": 2, "32": 1}}


def test_look_up_times_are_in_microseconds() -> None:
    assert tally(step(1, 0), step(1, 0)).figures()["lookup_microseconds"] == {"median": 2.0, "p99": 2.0}


def test_reliability_against_brute_force() -> None:
    generator = np.random.default_rng(0)
    steps, pairs = [], []
    for _ in range(200):
        survivals = np.sort(generator.random(4))[::-1].astype(np.float32)
        accepted = int(generator.integers(0, 5))
        steps.append(step(4, accepted, survivals=survivals.tolist()))
        pairs += [(p, i < accepted) for i, p in enumerate(survivals.tolist())]
    found = tally(*steps).reliability()
    assert found is not None
    error = 0.0
    for b in range(NUM_BINS):
        inside = [(p, right) for p, right in pairs if b / NUM_BINS <= p < (b + 1) / NUM_BINS]
        assert found.counts[b] == len(inside)
        if inside:
            predicted, observed = np.mean(inside, axis=0)
            assert found.predicted[b] == pytest.approx(predicted)
            assert found.observed[b] == pytest.approx(observed)
            error += abs(predicted - observed) * len(inside) / len(pairs)
    assert found.expected_calibration_error == pytest.approx(error)


def test_a_certain_prediction_falls_into_the_last_bin() -> None:
    found = tally(step(1, 1, survivals=[1.0])).reliability()
    assert found is not None and found.counts.tolist() == [0] * (NUM_BINS - 1) + [1]
    assert found.expected_calibration_error == 0.0
