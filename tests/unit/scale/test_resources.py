"""How many workers fit where."""

import pytest

from vllm_dare.errors import DareError
from vllm_dare.scale.resources import WorkerResources, fit

CPU_ONLY = [{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}]
GPUS = [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}]


def test_without_gpus_a_worker_takes_the_smallest_machine() -> None:
    assert fit(CPU_ONLY, None, None, None, 1) == WorkerResources(3, 4, 0)
    assert fit([{"CPU": 2.0}, {"CPU": 2.0}], None, None, None, 1) == WorkerResources(2, 2, 0)


def test_with_gpus_a_worker_takes_one_or_what_tensor_parallelism_needs() -> None:
    assert fit(GPUS, None, None, None, 1) == WorkerResources(12, 1, 1)
    assert fit(GPUS, None, None, None, 4) == WorkerResources(3, 1, 4)


def test_what_is_chosen_counts() -> None:
    assert fit(CPU_ONLY, 1, 2, None, 1) == WorkerResources(1, 2, 0)
    assert fit(GPUS, None, 8, 2, 1) == WorkerResources(4, 8, 2)
    assert fit(GPUS, None, 2, 0, 1) == WorkerResources(18, 2, 0)


def test_no_room_is_told_unless_machines_are_to_come() -> None:
    with pytest.raises(DareError, match=r"No machine of the Ray cluster has 8 GPUs .* --worker-gpus"):
        fit([{"CPU": 4.0, "GPU": 4.0}], None, None, None, 8)
    assert fit([{"CPU": 4.0, "GPU": 4.0}], 2, None, None, 8) == WorkerResources(2, 1, 8)
