"""The Ray cluster that a command uses."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from vllm_dare.errors import DareError
from vllm_dare.extras import need

_SHUFFLE_BLOCKS = 200
_INSTALL = "'vllm-dare[ray]'"
_CLIENT_PORT = 10001  # of an address ray://host
_CONNECT_SECONDS = 5.0


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Use a cluster until the block ends; one that this process is connected to already stays so.

    Args:
        address: of its head; None takes what the environment variable RAY_ADDRESS names, else the cluster
            that runs on this machine, else starts one of this machine alone.

    Raises:
        DareError: Ray is not installed, or does not answer.
    """
    ray = need("ray", "Ray", _INSTALL)
    need("ray.data", "Ray Data", _INSTALL)
    if ray.is_initialized():
        yield
        return
    _check_answers(address or os.environ.get("RAY_ADDRESS") or "")
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f" at {address}" if address else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DareError(
            f"The Ray cluster{where} cannot be used ({reason}); start one with `ray start --head`, and check "
            "--ray-address."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse a head where nothing listens: Ray would wait for it for minutes.

    Raises:
        DareError: see above.
    """
    if "://" not in address:  # host:port; `auto` and `local` have no port
        address = f"//{address}"
    elif not address.startswith("ray://"):
        return
    try:
        parts = urlsplit(address)
        port = parts.port or (_CLIENT_PORT if parts.scheme else None)
    except ValueError:  # which Ray would try to reach all the same
        raise DareError(
            f"{address.removeprefix('//')} is no address of a Ray cluster; give host:port, ray://host:port, "
            "auto or local."
        ) from None
    if not parts.hostname or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise DareError(
            f"Nothing answers at the Ray cluster's address {parts.hostname}:{port} "
            f"({error.strerror or error}); start a cluster with `ray start --head`, and check --ray-address, "
            "RAY_ADDRESS and the network."
        ) from None


def quiet_data() -> Any:
    """Ray Data's module, with its own bars and announcements off: commands show theirs."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal.execution"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray.data


def shuffle_blocks(num_keys: int) -> int:
    """Into how many blocks rows are sorted by a key: Ray's own default, or as many as there are keys."""
    return min(num_keys, _SHUFFLE_BLOCKS)


def user_error(error: BaseException) -> DareError | None:
    """The error of ours that a Ray task failed with; None if it failed of something else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DareError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
