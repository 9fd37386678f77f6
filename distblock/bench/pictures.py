"""Pictures of benchmarks, as SVG: bars where things are compared, lines where something is varied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distblock.report.pictures import save

LARGEST, SMALLEST = 6.0, 3.0
"""Height of a picture of bars, in inches."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A group of bars for each thing, lying, since things have long names.

    Attributes:
        title: above them.
        unit: what their length is.
        bars: length by series, then by thing; a thing may lack some.
    """

    title: str
    unit: str
    bars: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A line a series, both axes logarithmic.

    Attributes:
        title: above them.
        across, upward: what the axes are, with units.
        lines: height by series, then by place; all above 0.
    """

    title: str
    across: str
    upward: str
    lines: Mapping[str, Mapping[float, float]]


Picture = Bars | Lines


def draw(picture: Picture, path: Path) -> None:
    """Write it as SVG."""
    things = {thing for series in picture.bars.values() for thing in series} if isinstance(picture, Bars) else ()
    height = min(LARGEST, max(SMALLEST, 1.5 + 0.3 * len(things))) if isinstance(picture, Bars) else 4.5
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(picture.title, fontsize=10, wrap=True)
    if isinstance(picture, Bars):
        _bars(axes, picture)
    else:
        _lines(axes, picture)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def _bars(axes: Axes, picture: Bars) -> None:
    things = list(dict.fromkeys(thing for series in picture.bars.values() for thing in series))
    height = 0.8 / len(picture.bars)
    for number, (name, series) in enumerate(picture.bars.items()):
        places = [place + (number - (len(picture.bars) - 1) / 2) * height for place in range(len(things))]
        axes.barh(places, [series.get(thing, 0.0) for thing in things], height=height, label=name)
    axes.set_yticks(range(len(things)), things, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(picture.unit)


def _lines(axes: Axes, picture: Lines) -> None:
    for name, line in picture.lines.items():
        axes.plot(list(line), list(line.values()), marker="o", markersize=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(picture.across)
    axes.set_ylabel(picture.upward)
