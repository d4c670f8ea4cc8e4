"""What is counted, against counting one by one."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.drafting.drafter import Drafts
from vllm_dare.engine.draft_metrics import DraftMetrics
from vllm_dare.engine.metrics_file import SOURCES, MetricsFile

K = 4


class Request:
    def __init__(self, group: str | None) -> None:
        self.group = group


def drafts_of(lengths: list[int], origins: Any) -> Drafts:
    drafts = Drafts.empty(len(lengths), K)
    drafts.origins[:] = origins
    drafts.matches[:] = 3
    drafts.lengths[:] = lengths
    return drafts


@settings(max_examples=100)
@given(st.data())
def test_counts_are_those_of_a_plain_loop(tmp_path_factory: Any, data: st.DataObject) -> None:
    file = MetricsFile.create(tmp_path_factory.mktemp("metrics"), 0)
    metrics = DraftMetrics(file)
    requests = [Request(group) for group in ("a", "b", None, "a")]
    drafted, accepted = dict.fromkeys(SOURCES, 0), dict.fromkeys(SOURCES, 0)
    positions, chains, groups = [0] * K, 0, {"a": 0, "b": 0, None: 0}
    for _ in range(data.draw(st.integers(1, 4))):
        batch = data.draw(st.permutations(requests)).copy()[: data.draw(st.integers(1, 4))]
        lengths = data.draw(st.lists(st.integers(0, K), min_size=len(batch), max_size=len(batch)))
        origins = np.array(
            data.draw(st.lists(st.integers(0, 3), min_size=len(batch) * K, max_size=len(batch) * K))
        )
        drafts = drafts_of(lengths, origins.reshape(-1, K))
        metrics.sent(batch, [request.group for request in batch], drafts, drafts.lengths, 1e-4)
        drafts.origins[:] = 9  # the drafter writes its next drafts there
        drafts.lengths[:] = 99
        following = data.draw(st.permutations(requests))  # some were not in the step before
        scheduled, written = [], []
        for request in following:
            chain = batch.index(request) if request in batch else None
            verified = 0 if chain is None else data.draw(st.integers(0, lengths[chain]))  # a grammar may trim
            kept = data.draw(st.integers(0, verified))
            prompt = data.draw(st.booleans()) and chain is None
            scheduled.append(500 if prompt else verified + 1)
            written.append(kept + 1)
            if verified:
                chains += 1
                row = origins.reshape(-1, K)[chain]
                for place in range(verified):
                    drafted[SOURCES[row[place]]] += 1
                    accepted[SOURCES[row[place]]] += place < kept
                    positions[place] += place < kept
                groups[request.group] += verified
        metrics.verified(following, np.array(scheduled), np.array(written))
    assert file.numbers("drafts")[0] == chains
    assert file.numbers("draft_tokens").tolist() == list(drafted.values())
    assert file.numbers("accepted_tokens").tolist() == list(accepted.values())
    assert file.numbers("accepted_tokens_per_position")[:K].tolist() == positions
    for group, number in groups.items():
        assert file.numbers("group_draft_tokens")[file.group_slot(group)] == number


def test_a_preempted_request_counts_nothing(tmp_path: Path) -> None:
    file = MetricsFile.create(tmp_path, 0)
    metrics, request = DraftMetrics(file), Request(None)
    drafts = drafts_of([2], np.zeros((1, K)))
    metrics.sent([request], [None], drafts, drafts.lengths, 1e-4)
    metrics.verified([request], np.array([40]), np.array([1]))  # its prompt is read again
    metrics.verified([request], np.array([3]), np.array([3]))  # of drafts that were never sent
    assert file.numbers("drafts")[0] == 0
    assert file.numbers("draft_tokens").sum() == 0


def test_what_is_sent_and_when_nothing_is(tmp_path: Path) -> None:
    file = MetricsFile.create(tmp_path, 0)
    metrics = DraftMetrics(file)
    drafts = drafts_of([4, 3, 0], np.zeros((3, K)))
    metrics.sent([Request(None) for _ in range(3)], [None] * 3, drafts, np.array([4, 1, 0]), 3e-5)
    metrics.rested()
    metrics.relaxed(12)
    assert file.numbers("chain_tokens")[:-1].sum() == 3
    assert file.numbers("chain_tokens")[-1] == 5
    assert file.numbers("match_tokens")[-1] == 6  # two chains, each after three tokens
    assert file.numbers("look_up_seconds")[-1] == 3e-5
    assert file.numbers("resting_steps")[0] == 1
    assert file.numbers("relaxed_tokens")[0] == 12
