"""The report's pictures, as SVG that stands inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import chain, cycle
from typing import Any

import matplotlib as mpl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distblock.planning.crossover import Workload, ways
from distblock.report.early_exits import plot_curve
from distblock.report.page.crossover import line_bytes_per_s
from distblock.report.page.run import Run
from distblock.report.page.schedule import Bar, measured, planned
from distblock.report.pictures import save
from distblock.report.times import PARTS, worker_times

COLORS = ("#4477aa", "#ee6677", "#ccbb44", "#66ccee", "#bbbbbb", "#aa3377", "#228833")
"""Told apart by the color-blind. Source: Paul Tol, "Colour Schemes", 2021."""

WIDTHS = (1, 4, 16)
"""Times the channels, of networks that ways to train are compared for."""

DASHED = ("#ee6677", "#aa3377", "black")
"""Ways to train that are not block by block."""

BYTES_PER_MBIT = 1e6 / 8

MOST_STAGES = 16
"""Lines of accuracy by epoch; of more stages, some are drawn."""


def accuracy_by_depth(runs: Sequence[Run]) -> str:
    """Validation and test accuracy over the stages, a color a run."""
    figure, axes = _figure()
    for color, run in zip(cycle(COLORS), runs, strict=False):
        for part, style in (("val", "--"), ("test", "-")):
            values = [(stage["index"], stage[f"{part}_accuracy"]) for stage in run.summary["stages"]]
            drawn = [(index, 100 * value) for index, value in values if value is not None]
            label = f"{run.name}: {'validation' if part == 'val' else part}"
            axes.plot(*zip(*drawn, strict=True), style, color=color, marker="o", markersize=4, label=label)
    _label(axes, "stage", "accuracy, %")
    return _svg(figure, "Accuracy by depth", runs)


def transport_cost_by_depth(runs: Sequence[Run]) -> str:
    """Over the stages, a color a run."""
    figure, axes = _figure()
    for color, run in zip(cycle(COLORS), runs, strict=False):
        values = [(stage["index"], stage["transport_cost"]) for stage in run.summary["stages"]]
        drawn = [each for each in values if each[1] is not None]
        axes.plot(*zip(*drawn, strict=True), color=color, marker="o", markersize=4, label=run.name)
    _label(axes, "stage", "transport cost")
    return _svg(figure, "Transport cost by depth", runs)


def early_exits(run: Run, found: Mapping[str, Any]) -> str:
    """Test accuracy against compute and time, where sure stages answer."""
    figure, axes = _figure()
    plot_curve(axes, found)
    return _svg(figure, "Early exits", [run])


def by_epoch(run: Run, column: str, what: str) -> str:
    """A column of metrics.parquet over the epochs, a line a stage."""
    figure, axes = _figure()
    stages = sorted({row["stage"] for row in run.metrics})
    drawn = stages if len(stages) <= MOST_STAGES else stages[:: -(-len(stages) // MOST_STAGES)]
    shades = mpl.colormaps["viridis"]
    for stage in drawn:
        rows = [row for row in run.metrics if row["stage"] == stage and row[column] is not None]
        color = shades(0.9 * stages.index(stage) / max(1, len(stages) - 1))
        factor = 100 if "accuracy" in column else 1
        epochs, values = [row["epoch"] + 1 for row in rows], [factor * row[column] for row in rows]
        axes.plot(epochs, values, color=color, marker=".", label=f"stage {stage}")
    _label(axes, "epoch", what)
    return _svg(figure, f"{what} by epoch", [run])


def edge_seconds(run: Run) -> str:
    """What each edge's hops took, and how much of it was exposed."""
    edges = run.stored_edges
    figure, axes = _figure(height=1.5 + 0.35 * len(edges))
    names = [edge["name"] for edge in edges]
    phases = ("encode_s", "put_s", "fetch_s", "decode_s")
    _stack(axes, names, {key.removesuffix("_s"): [edge[key] for edge in edges] for key in phases}, height=0.5)
    exposed = [edge["exposed_s"] for edge in edges]
    axes.barh(names, exposed, height=0.12, color="black", label="exposed, of fetch and decode")
    axes.invert_yaxis()
    _label(axes, "seconds over the run", "")
    return _svg(figure, "Seconds of each edge's hops", [run])


def edge_bytes(run: Run) -> str:
    """What crossed each edge, and how quickly."""
    edges = run.stored_edges
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(edges)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [edge["name"] for edge in edges]
    left.barh(names, [edge["wire_bytes"] * 1e-6 for edge in edges], height=0.5, color=COLORS[0])
    left.set_xlabel("MB over the run")
    right.barh(names, [edge["hop_bandwidth_bytes_per_s"] * 1e-6 for edge in edges], height=0.5, color=COLORS[3])
    right.set_xlabel("MB/s, over a hop's own work")
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return _svg(figure, "Bytes and bandwidth of each edge", [run])


def worker_seconds(runs: Sequence[Run]) -> str:
    """Where each worker's time went; all bars of a run are as long as the run."""
    rows = [(run, each) for run in runs for each in worker_times(run.summary)]
    names = [f"{run.name}: {each.name}" if len(runs) > 1 else each.name for run, each in rows]
    figure, axes = _figure(height=1.7 + 0.32 * len(rows))
    parts = {label: [getattr(each, part) for _, each in rows] for part, label in PARTS.items()}
    _stack(axes, range(len(rows)), parts, height=0.6)
    axes.set_yticks(range(len(rows)), [_plain(name) for name in names])
    axes.invert_yaxis()
    _label(axes, "seconds", "")
    return _svg(figure, "Where each worker's time went", runs)


def schedules(run: Run) -> str:
    """Planned above measured, at one scale."""
    plan, real = planned(run), measured(run)
    parts = [("measured", real)] if plan is None else [("planned", plan), ("measured", real)]
    places = 1 + max(bar.place for bar in real)
    figure = Figure(figsize=(8, 0.8 + len(parts) * (0.6 + 0.28 * places)), layout="constrained")
    all_axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0]
    end_s = max(bar.finished_s for bar in real)
    for axes, (title, bars) in zip(all_axes, parts, strict=True):
        _staircase(axes, [bar for bar in bars if bar.started_s < end_s], places=places)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlim(0, end_s)
    all_axes[-1].set_xlabel("seconds")
    return _svg(figure, "The first microbatches: schedule", [run])


def crossover(run: Run, work: Workload) -> str:
    """Samples per second by link rate, of each way to train a network: this one, and ones of more channels."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panels = figure.subplots(1, len(WIDTHS), sharex=True, sharey=True)
    rates = [10 ** (exponent / 8) for exponent in range(-8, 33)]
    for axes, width in zip(panels, WIDTHS, strict=True):
        wide = work.widened(width)
        found = ways(wide)
        # Codecs are shades of one way; the others are dashed.
        num_codecs = sum(name.startswith("block") for name in found)
        shades = [colormaps["viridis"](0.95 * index / num_codecs) for index in range(num_codecs)]
        for index, (color, (name, way)) in enumerate(zip(chain(shades, DASHED), found.items(), strict=True)):
            style = "-" if index < num_codecs else "--"
            paces = [way.samples_per_s(rate * BYTES_PER_MBIT) for rate in rates]
            axes.plot(rates, paces, style, color=color, linewidth=1.3, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        channels = "this network" if width == 1 else f"{width} times the channels"
        axes.set_title(f"{channels}\n{wide.num_parameters / 1e6:.3g} M parameters", fontsize=9)
    line = line_bytes_per_s(run)
    if line is not None:
        measured_at = line / BYTES_PER_MBIT
        panels[0].plot([measured_at], [run.summary["samples_per_s"]], "k*", markersize=9, label="measured: this run")
    panels[0].set_ylabel("samples/s")
    panels[len(WIDTHS) // 2].set_xlabel("link, Mbit/s a direction")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return _svg(figure, "When to use what", [run])


def _stack(axes: Axes, places: Sequence[Any], parts: Mapping[str, Sequence[float]], *, height: float) -> None:
    """Lying bars, each of its parts behind the one before."""
    left = [0.0] * len(places)
    for color, (label, values) in zip(COLORS, parts.items(), strict=False):
        axes.barh(places, values, left=left, color=color, height=height, label=label)
        left = [before + value for before, value in zip(left, values, strict=True)]


def _staircase(axes: Axes, bars: Sequence[Bar], *, places: int) -> None:
    for bar in bars:
        light = 0.65 if bar.number % 2 else 1.0
        color = COLORS[0] if bar.purpose != "evaluate" else COLORS[2]
        width = bar.finished_s - bar.started_s
        axes.barh(bar.place, width, left=bar.started_s, height=0.8, color=color, alpha=light, linewidth=0)
    axes.set_yticks(range(places), ["data", *(f"worker {place}" for place in range(places - 1))], fontsize=8)
    axes.set_ylim(places - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def _figure(height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, across: str, upward: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(upward)
    if across in ("stage", "epoch"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure = axes.get_figure(root=True)
        assert figure is not None
        names = [_plain(label) for label in labels]
        figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=4)


def _plain(text: str) -> str:
    """Dollar signs would be mathematics."""
    return text.replace("$", r"\$")


def _svg(figure: Figure, title: str, runs: Sequence[Run]) -> str:
    """Without the head that a file has; with a title for whoever cannot see it."""
    file = io.StringIO()
    salt = f"{title}/{'/'.join(run.name for run in runs)}"
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        save(figure, file, salt=salt)
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    whose = ", ".join(run.name for run in runs)
    label = escape(f"{title}: {whose}", quote=True)
    head = f'<svg role="img" aria-label="{label}"'
    return svg.replace("<svg", head, 1)
