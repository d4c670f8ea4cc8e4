"""What tells a group apart."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vllm_dare.errors import DareError
from vllm_dare.routing.favourites import favourites, read_titles
from vllm_dare.routing.interactions import Positives


def test_against_a_loop(make_positives: Callable[..., Positives]) -> None:
    positives = make_positives(num_users=40, num_items=12, tastes=2)
    labels = (np.arange(42) % 3 - 1).astype(np.int32)  # a third has no group; two users have no items
    found = favourites(positives, labels, 2, {"3": "Three"})
    likes = positives.matrix(42).toarray()
    for group in range(2):
        tells = {}
        for item in range(12):
            share = likes[labels == group, item].mean()
            overall = likes[labels >= 0, item].mean()
            if share > overall:
                tells[str(item)] = (share * np.log(share / overall), share, share / overall)
        best = sorted(tells, key=lambda item: -tells[item][0])[:5]
        assert [favourite.item for favourite in found[group]] == best
        for favourite in found[group]:
            assert favourite.title == {"3": "Three"}.get(favourite.item, favourite.item)
            assert (favourite.share, favourite.lift) == pytest.approx(tells[favourite.item][1:])


def test_titles(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text('movie_id,title\n1,"Rock, The (1996)"\n2,\n03,Heat\n')
    assert read_titles(tmp_path / "i.csv", "title") == {"1": "Rock, The (1996)", "03": "Heat"}
    with pytest.raises(DareError, match="no column 'name'; its columns are movie_id, title"):
        read_titles(tmp_path / "i.csv", "name")
