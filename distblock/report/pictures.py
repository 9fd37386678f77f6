"""Pictures of runs, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distblock.statistics import mean_and_interval


def draw_accuracy_by_depth(accuracies: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """A line a setting over its stages, with the 95 % interval of the mean; a dashed one for a single stage.

    Args:
        accuracies: by setting, then seed, then stage; 0 to 1.
        path: the SVG file.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in accuracies.items():
        means, halves = zip(*(mean_and_interval(values) for values in zip(*runs, strict=True)), strict=True)
        low = [100 * (mean - half) for mean, half in zip(means, halves, strict=True)]
        high = [100 * (mean + half) for mean, half in zip(means, halves, strict=True)]
        if len(means) == 1:
            line = axes.axhline(100 * means[0], linestyle="--", color="black", label=name)
            axes.axhspan(low[0], high[0], alpha=0.1, color=line.get_color())
        else:
            (line,) = axes.plot(range(len(means)), [100 * mean for mean in means], marker="o", markersize=4, label=name)
            axes.fill_between(range(len(means)), low, high, alpha=0.15, color=line.get_color())
    axes.set_xlabel("stage")
    axes.set_ylabel("test accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)


def save(figure: Figure, to: Path | IO[str], *, salt: str = "distblock") -> None:
    """Write a figure as SVG: the same file from the same figures.

    Args:
        figure: it.
        to: the file.
        salt: what the names within it are made from: pictures that stand on one page need different ones.
    """
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(to, format="svg", metadata={"Date": None})
