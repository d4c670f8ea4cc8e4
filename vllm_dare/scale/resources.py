"""How many workers a cluster has room for, and what each takes."""

from dataclasses import dataclass

from vllm_dare.errors import DareError
from vllm_dare.generation.settings import EngineSettings


@dataclass(frozen=True)
class WorkerResources:
    """As Ray counts them.

    Attributes:
        workers: how many.
        cpus, gpus: of each.
    """

    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        each = f"{self.gpus:g} GPUs" if self.gpus else f"{self.cpus:g} processors"
        return f"{self.workers} workers of {each} each"


def worker_resources(
    workers: int | None, cpus: float | None, gpus: float | None, engine: EngineSettings
) -> WorkerResources:
    """Fill in what nobody has chosen.

    Args:
        workers: None takes as many as the cluster has room for now.
        cpus: of each; None is one where a worker has GPUs, else all of the smallest machine, as vLLM's CPU
            engine takes all it can get.
        gpus: of each; None is one (with tensor parallelism as many as it needs) if the cluster has any.
        engine: the engine that each worker starts.

    Raises:
        DareError: no machine has room for a worker.
    """
    import ray

    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    return fit(machines, workers, cpus, gpus, int(engine.engine_args.get("tensor_parallel_size", 1)))


def fit(
    machines: list[dict[str, float]], workers: int | None, cpus: float | None, gpus: float | None, tensor: int
) -> WorkerResources:
    """`worker_resources` of machines with these resources.

    Raises:
        DareError: see there.
    """
    if gpus is None:
        gpus = tensor if any(machine.get("GPU") for machine in machines) else 0
    if cpus is None:
        cpus = 1 if gpus else min((machine["CPU"] for machine in machines if machine.get("CPU")), default=1)
    room = sum(_room(machine, cpus, gpus) for machine in machines)
    if not room and workers is None:
        raise DareError(
            f"No machine of the Ray cluster has {gpus:g} GPUs and {cpus:g} processors for a worker; choose "
            "fewer with --worker-gpus and --worker-cpus, or say with --workers how many are to come."
        )
    return WorkerResources(workers or room, cpus, gpus)


def _room(machine: dict[str, float], cpus: float, gpus: float) -> int:
    needs = {"CPU": cpus, "GPU": gpus}
    return min(int(machine.get(name, 0) // need) for name, need in needs.items() if need)
