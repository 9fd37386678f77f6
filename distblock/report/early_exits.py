"""Early exits as people read them: accuracy against compute, by class, and the confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from distblock.report.pictures import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]
"""``early_exit.json``; see `distblock.inference.early_exit.evaluate_early_exit`."""

MOST_CLASSES = 20
"""Of a confusion matrix that is shown whole; of more, the classes that are confused most."""


def early_exit_table(found: Found) -> Table:
    """A row a policy: on the test part, beside validation's accuracy."""
    last = found["last_stage"]
    table = Table(title=f"early exits; compute and time: of stage {last} alone")
    headings = ("confidence", "asked", "validation", "test", "compute", "time", "an image", "answered by stage")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("asked", "answered by stage") else "right")
    for point in found["curve"]:
        alone = point["confidence"] is None
        test = point["test"]
        table.add_row(
            "" if alone else f"{point['confidence']:g}",
            f"{last} alone" if alone else " ".join(str(stage) for stage in point["asked"]),
            f"{point['validation']['accuracy']:.2%}",
            f"{test['accuracy']:.2%}",
            f"{test['cost']:.0%}",
            f"{point['time']:.0%}",
            f"{point['seconds_per_image'] * 1e6:.0f} µs",
            ", ".join(f"{stage}: {share:.0%}" for stage, share in enumerate(test["answered"]) if share > 0),
        )
    return table


def class_table(found: Found) -> Table:
    """A row a class: accuracy of the last stage."""
    table = Table(title="test accuracy by class, last stage")
    table.add_column("class")
    table.add_column("samples", justify="right")
    table.add_column("accuracy", justify="right")
    for name, own, row in zip(found["class_names"], found["classes"], found["confusion"], strict=True):
        table.add_row(name, str(sum(row)), "no sample" if own is None else f"{own:.2%}")
    return table


def confusion_table(found: Found) -> Table:
    """Rows are labels, columns what was predicted."""
    matrix = np.asarray(found["confusion"])
    shown = np.arange(len(matrix))
    if len(matrix) > MOST_CLASSES:
        wrong = matrix.sum(axis=1) - matrix.diagonal()
        shown = np.sort(wrong.argsort()[::-1][:MOST_CLASSES])
    what = "" if len(shown) == len(matrix) else f", the {MOST_CLASSES} classes of {len(matrix)} with most errors"
    table = Table(title=f"rows: labels, columns: predicted{what}")
    table.add_column("")
    for column in shown:
        table.add_column(str(found["class_names"][column]), justify="right")
    for row in shown:
        table.add_row(str(found["class_names"][row]), *(str(matrix[row, column]) for column in shown))
    return table


def draw_curve(found: Found) -> str:
    """Accuracy on the test part against compute and time, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    plot_curve(figure.subplots(), found)
    content = io.StringIO()
    save(figure, content)
    return content.getvalue()


def plot_curve(axes: Axes, found: Found) -> None:
    """The same into a picture."""
    curve = found["curve"]
    accuracies = [100 * point["test"]["accuracy"] for point in curve]
    axes.plot([100 * point["test"]["cost"] for point in curve], accuracies, "o-", label="compute, counted")
    axes.plot([100 * point["time"] for point in curve], accuracies, "s--", label="time, measured")
    axes.axhline(accuracies[-1], color="gray", linewidth=1, label=f"stage {found['last_stage']} alone")
    axes.set_xlabel(f"% of stage {found['last_stage']} alone")
    axes.set_ylabel("test accuracy, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
