"""Matrix factorization by `implicit`: ALS, which scales furthest, and BPR."""

from collections.abc import Callable
from typing import Any

from vllm_dare.extras import need
from vllm_dare.pool.threads import usable_cores
from vllm_dare.routing.embeddings import DIMENSIONS, Embeddings
from vllm_dare.routing.interactions import Positives

_ALS_CONFIDENCE = 10.0
_ALS_ITERATIONS, _BPR_ITERATIONS = 15, 100
_INSTALL = "'vllm-dare[groups]'"

Tell = Callable[[str], None]


def learn_als(positives: Positives, seed: int, tell: Tell) -> Embeddings:
    """Alternating least squares for implicit feedback (Hu, Koren and Volinsky 2008); 32 factors.

    Args:
        positives: who liked what; a pair counts ten times as much as one that is not there.
        seed: of the start.
        tell: called with what is being done.

    Raises:
        DareError: implicit is not installed.
    """
    module = need("implicit.cpu.als", "implicit", _INSTALL)
    with _one_blas_thread():
        model = module.AlternatingLeastSquares(
            DIMENSIONS,
            alpha=_ALS_CONFIDENCE,
            iterations=_ALS_ITERATIONS,
            num_threads=usable_cores(),
            random_state=seed,
        )
        model.fit(
            positives.matrix(),
            show_progress=False,
            callback=lambda done, *_: tell(f"ALS, iteration {done + 1} of {_ALS_ITERATIONS}"),
        )
    return Embeddings(model.user_factors, model.item_factors)


def learn_bpr(positives: Positives, seed: int, tell: Tell) -> Embeddings:
    """Bayesian personalized ranking (Rendle et al. 2009); 32 factors, item biases left out.

    One thread, as several would make each run another one. Arguments and errors as `learn_als`.
    """
    module = need("implicit.cpu.bpr", "implicit", _INSTALL)
    tell(f"BPR, {_BPR_ITERATIONS} iterations")
    with _one_blas_thread():
        model = module.BayesianPersonalizedRanking(
            DIMENSIONS, iterations=_BPR_ITERATIONS, num_threads=1, random_state=seed
        )
        model.fit(positives.matrix(), show_progress=False)
    # The last column is the items' bias and the ones that it is multiplied with.
    return Embeddings(model.user_factors[:, :DIMENSIONS], model.item_factors[:, :DIMENSIONS])


def _one_blas_thread() -> Any:
    """A context in which each of implicit's own threads does not start as many again."""
    return need("threadpoolctl", "threadpoolctl", _INSTALL).threadpool_limits(1, "blas")
