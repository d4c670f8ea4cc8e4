"""vllm-dare: retrieval-pool drafts and relaxed verification for vLLM.

Names are imported on first use, so that ``import vllm_dare`` loads neither vLLM, torch nor numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_dare.config import DareConfig
    from vllm_dare.engine.proposer import DareProposer
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.request import request_args

__version__ = "0.1.0"

_HOMES = {
    "DareConfig": "vllm_dare.config",
    "DareProposer": "vllm_dare.engine.proposer",
    "RetrievalPool": "vllm_dare.pool.pool",
    "request_args": "vllm_dare.request",
}

__all__ = ["DareConfig", "DareProposer", "RetrievalPool", "request_args"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vllm_dare' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
