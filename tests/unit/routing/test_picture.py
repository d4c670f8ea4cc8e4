"""The picture is drawn whatever the number of groups, users and dimensions."""

from pathlib import Path

import numpy as np
import pytest

from vllm_dare.routing.embeddings import unit_rows
from vllm_dare.routing.picture import draw_groups


@pytest.mark.parametrize(
    ("users", "dimensions", "groups"), [(300, 8, 3), (300, 8, 40), (1, 4, 1), (2, 1, 2), (5000, 2, 20)]
)
def test_a_picture_with_a_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: int, dimensions: int, groups: int
) -> None:
    from vllm_dare.routing import picture

    figures = []
    new_figure = picture.new_figure

    def keep(*size: float) -> object:
        figures.append(new_figure(*size))
        return figures[-1]

    monkeypatch.setattr(picture, "new_figure", keep)
    rng = np.random.default_rng(0)
    labels = np.sort(np.arange(users) % groups).astype(np.int32)
    vectors = unit_rows(rng.normal(size=(users, dimensions)).astype(np.float32))
    names = [f"users/{i}" for i in range(groups)]
    draw_groups(tmp_path / "g.png", vectors, labels, names, 0)
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    shown = [f"{name} ({(labels == i).sum():,})" for i, name in enumerate(names[:20])]
    assert sorted(texts) == sorted([*shown, *([f"{groups - 20} more groups"] if groups > 20 else [])])
    drawn = sum(len(points.get_offsets()) for points in axes.collections)
    assert drawn == min(users, 4000)
