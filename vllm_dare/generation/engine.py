"""Start and stop the vLLM engine of a batch run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dare.engine.orphans import tie_engine_to_this_process
from vllm_dare.engine.preload import preload_for_cpu
from vllm_dare.errors import DareError
from vllm_dare.generation.settings import EngineSettings
from vllm_dare.generation.watch import watch_engine

if TYPE_CHECKING:
    from vllm_dare.routing.router import Router


def check_pool(pool: Path | str, model: str, learn: bool = False) -> None:
    """Look at the pool before the engine starts, which takes half a minute and more.

    The engine compares tokenizers too; here it is done where the model is a local directory.

    Args:
        pool: the pool directory, or the URL of a store, whose pool is fetched; to ``learn``, it may be
            missing or empty, and the engine makes it.
        model: the model directory or name.
        learn: whether the run learns.

    Raises:
        PoolError: the pool cannot be read, or has another tokenizer.
    """
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.pool.tokenizer import load_tokenizer, tokenizer_info

    if isinstance(pool, str):
        from vllm_dare.store.mirror import open_mirror

        # Never closed, so that the cache keeps it until the engine has opened it, too.
        directory = open_mirror(pool, learns=learn)[0].pool
    else:
        directory = pool
    if learn and not (directory.is_dir() and any(directory.iterdir())) and not directory.is_file():
        return
    with RetrievalPool.open(directory) as opened:
        opened.check_files()
        if (Path(model) / "tokenizer.json").is_file():
            info = tokenizer_info(load_tokenizer(model), model)
            opened.check_tokenizer(info.name, info.fingerprint)


def open_router(settings: EngineSettings) -> "Router | None":
    """What says which group's text drafts for a request, as the started engine has it; None without a pool.

    The pool is not kept open, or what is dropped from it would stay on disk for as long as the run takes.

    Raises:
        PoolError: the pool cannot be read.
    """
    from vllm_dare.pool.pool import RetrievalPool
    from vllm_dare.store.cache import pool_directory

    if settings.pool is None or not settings.draft_tokens:
        return None
    with RetrievalPool.open(pool_directory(settings.pool)) as pool:
        return pool.router  # its files stay mapped


def check_model(model: str) -> None:
    """Find a mistyped model directory before vLLM takes it for a name on a model hub.

    Raises:
        DareError: the model is given as a path, and nothing is there.
    """
    if model.startswith((os.sep, "./", "../")) and not Path(model).exists():
        raise DareError(f"There is no directory {model}.")


def start_engine(settings: EngineSettings) -> Any:
    """Build the ``vllm.LLM`` of a batch run, see `start_llm`."""
    return start_llm(settings.llm_args())


def start_llm(arguments: Mapping[str, Any]) -> Any:
    """Build a ``vllm.LLM`` with these arguments, warmed up with one short request.

    Raises:
        DareError: vLLM is missing or did not start.
    """
    _hush_start()
    preload_for_cpu()
    tie_engine_to_this_process()
    try:
        from vllm import LLM
    except ImportError as error:
        raise DareError(
            f"vLLM cannot be imported ({error}); install it with `pip install 'vllm-dare[cuda]'` or "
            "`pip install 'vllm-dare[cpu]'`, and see `vllm-dare doctor`."
        ) from None
    try:
        llm = LLM(**arguments)
        watch_engine(llm)
        _warm_up(llm)
    except DareError:
        raise
    except Exception as error:  # vLLM raises whatever its parts raise, down to plain RuntimeError
        raise DareError(f"The vLLM engine did not start: {_first_line(error)}") from None
    return llm


def stop_engine(llm: Any) -> None:
    """Stop the engine's processes now rather than when Python collects the object."""
    llm.llm_engine.engine_core.shutdown()


def _hush_start() -> None:
    """A good start says nothing; whoever wants to hear more sets one of these."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # the second is multiprocessing's word on the shared memory of killed processes, which it then removes
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker"
    )


def _warm_up(llm: Any) -> None:
    """Pay for first-use costs (kernels, allocations) before any row is timed."""
    from vllm import SamplingParams

    llm.generate(
        [{"prompt_token_ids": [1, 2, 3]}],
        # to its end, so that it is too short to be learned
        SamplingParams(max_tokens=8, temperature=0, ignore_eos=True),
        use_tqdm=False,
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
