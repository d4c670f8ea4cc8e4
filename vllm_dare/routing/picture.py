"""A picture of groups: users in two dimensions, coloured by group."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vllm_dare.extras import need
from vllm_dare.figure import new_figure

_SAMPLE = 4_000
_COLOURS = 20


def draw_groups(path: Path, vectors: np.ndarray, labels: np.ndarray, names: Sequence[str], seed: int) -> None:
    """Write a PNG: the two principal components of up to 4,000 users' vectors.

    The twenty largest groups have a colour each and stand in the legend with their sizes, at the place of
    their mean their number; the others are grey.

    Args:
        path: the file.
        vectors: float32[users, dimensions] of length 1.
        labels: int32[users], places in names, the largest group first.
        names: of the groups.
        seed: of the sample.
    """
    sizes = np.bincount(labels, minlength=len(names))
    chosen = np.random.default_rng(seed).permutation(len(vectors))[:_SAMPLE]
    points, labels = _principal(vectors[chosen], seed), labels[chosen]
    figure = new_figure(9.5, 6.5)
    axes = figure.subplots()
    colours = _palette()
    others = labels >= _COLOURS
    if others.any():
        name = f"{len(names) - _COLOURS:,} more groups"
        axes.scatter(*points[others].T, s=5, color="0.8", linewidths=0, label=name, zorder=1)
    for group in range(min(_COLOURS, len(names))):
        mine = points[labels == group]
        label = f"{names[group]} ({sizes[group]:,})"
        axes.scatter(*mine.T, s=7, color=colours[group], linewidths=0, alpha=0.7, label=label, zorder=2)
        if len(mine):
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colours[group]}
            axes.annotate(
                names[group].rsplit("/", 1)[-1],
                mine.mean(axis=0),
                ha="center",
                va="center",
                bbox=box,
                fontsize=8,
            )
    axes.set_title(f"{len(names):,} groups of {sizes.sum():,} users, {len(chosen):,} of them drawn")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    legend = axes.legend(
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=3
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    figure.savefig(path, dpi=150, format="png")


def _principal(vectors: np.ndarray, seed: int) -> np.ndarray:
    """float[users, 2]"""
    parts = min(2, *vectors.shape)
    module = need("sklearn.decomposition", "scikit-learn", "'vllm-dare[groups]'")
    points = np.zeros((len(vectors), 2))
    if len(vectors) > 1:
        points[:, :parts] = module.PCA(parts, random_state=seed).fit_transform(vectors)
    return points


def _palette() -> list[tuple[float, ...]]:
    """Ten strong colours, then ten pale ones."""
    from matplotlib import colormaps

    colours = [colormaps["tab20"](number) for number in range(_COLOURS)]
    return [*colours[0::2], *colours[1::2]]
