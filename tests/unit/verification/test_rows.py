"""What is read of a row of logits, against numpy."""

import numpy as np
import pytest

pytest.importorskip("numba")

from vllm_dare.verification.rows import entropy_of, rank_of, sum_of_shares, token_of


def rows() -> list[np.ndarray]:
    random = np.random.default_rng(4)
    made = []
    for size in (1, 2, 3, 7, 1023, 1024, 1025, 5000, 32_000):
        for scale in (0.5, 4.0, 30.0):
            row = (random.normal(size=size) * scale).astype(np.float32)
            made.append(row)
            made.append(np.round(row))  # with ties
            masked = row.copy()
            masked[random.random(size) < 0.7] = -np.inf
            masked[random.integers(size)] = 0.5
            made.append(masked)
    return made


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{len(row)}")
def test_rows(row: np.ndarray) -> None:
    top = row.max()
    shares = np.exp(row.astype(np.float64) - top)
    assert token_of(row, top) == row.argmax()
    assert token_of(row, np.float32(1e9)) == len(row)
    total = sum_of_shares(row, top)
    assert total == pytest.approx(shares.sum(), rel=1e-6)
    order = np.lexsort((np.arange(len(row)), -row))
    for rank in {0, len(row) // 2, len(row) - 1}:
        assert rank_of(row, order[rank]) == rank + 1
    p = np.sort(shares / shares.sum())[::-1][:3]
    assert entropy_of(row, top, total) == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum(), abs=1e-5)


def test_a_row_in_which_everything_is_masked() -> None:
    row = np.full(3000, -np.inf, np.float32)
    assert token_of(row, row.max()) == 0
