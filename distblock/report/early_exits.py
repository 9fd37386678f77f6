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
"""``early_exit.json``; see `distblock.early_exit.evaluate_early_exit`."""

MOST_CLASSES = 20
"""Of a confusion matrix that is shown whole; of more, the classes that are confused most."""


def early_exit_table(found: Found) -> Table:
    """A row a confidence: on the test part, beside validation's accuracy."""
    table = Table(title=f"early exits, the last stage {found['last_stage']}; compute and time: of that stage's")
    headings = ("confidence", "validation", "test", "compute", "time", "an image", "answered by stage")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "answered by stage" else "right")
    whole, *timed = found["timed"]
    last = found["test"][-1]["answered"]
    never = {"accuracy": _accuracy(found), "cost": 1.0, "answered": [0.0] * (len(last) - 1) + [1.0]}
    rows = zip(("none", *(None,) * len(timed)), (whole, *timed), (None, *found["validation"]), strict=True)
    for (name, time, validation), test in zip(rows, (never, *found["test"]), strict=True):
        table.add_row(
            name or f"{test['confidence']:g}",
            "" if validation is None else f"{validation['accuracy']:.2%}",
            f"{test['accuracy']:.2%}",
            f"{test['cost']:.0%}",
            f"{time['time']:.0%}",
            f"{time['seconds_per_image'] * 1e6:.0f} µs",
            " ".join(f"{share:.0%}" for share in test["answered"]),
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
    accuracies = [100 * point["accuracy"] for point in found["test"]]
    axes.plot([100 * point["cost"] for point in found["test"]], accuracies, "o-", label="compute, counted")
    times = [100 * point["time"] for point in found["timed"][1:]]
    axes.plot(times, accuracies, "s--", label="time, measured")
    axes.axhline(100 * _accuracy(found), color="gray", linewidth=1, label=f"stage {found['last_stage']} alone")
    axes.set_xlabel("% of the last stage's")
    axes.set_ylabel("test accuracy, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()


def answered(stages: np.ndarray, confidence: float | None, last: int) -> str:
    """Which stages have answered, in one line."""
    if confidence is None:
        return f"all answered by stage {last}"
    shares = [f"stage {stage} {np.mean(stages == stage):.0%}" for stage in range(last + 1)]
    return f"from a probability of {confidence:g} on a stage answers: {', '.join(shares)}"


def _accuracy(found: Found) -> float:
    """Of the last stage alone."""
    matrix = np.asarray(found["confusion"])
    return float(matrix.diagonal().sum() / matrix.sum())
