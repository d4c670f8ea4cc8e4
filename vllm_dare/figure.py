"""A new picture, for every module that draws."""

from typing import Any


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches that draws PNG.

    Without pyplot: nothing here is interactive, and its state is the whole process's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
