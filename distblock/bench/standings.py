"""Rounds of samples per second by contender: medians, ratios within a round, and each rival at its best."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

Round = Mapping[str, float]
"""Samples per second by contender; one that failed in a round is not in it."""


def our_name(workers: int) -> str:
    """distblock's name among the contenders, with so many workers."""
    return f"distblock, {workers} worker{'s' if workers > 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of some rounds."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    return Spread(median=statistics.median(values), min=min(values), max=max(values))


def rates(rounds: Sequence[Round], name: str) -> list[float]:
    """Of the rounds in which the contender did not fail."""
    return [each[name] for each in rounds if name in each]


def ratios(rounds: Sequence[Round], name: str, other: str) -> list[float]:
    """``name`` over ``other``, each within one round."""
    return [each[name] / each[other] for each in rounds if name in each and other in each]


def best(rounds: Sequence[Round], names: Sequence[str]) -> str | None:
    """The one with the highest median; None where none has come through."""
    medians = {name: statistics.median(found) for name in names if (found := rates(rounds, name))}
    return max(medians, key=lambda name: medians[name], default=None)


def make_table(title: str, rounds: Sequence[Round], names: Sequence[str], *, ours: str) -> Table:
    """A row a contender that has come through, with ours over it."""
    table = Table(title=title)
    for heading in ("", "samples/s", "min", "max", f"{ours} / it, median", "min", "max"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in names:
        if found := rates(rounds, name):
            own, over = spread(found), ratios(rounds, ours, name)
            columns = [f"{value:.0f}" for value in (own.median, own.min, own.max)]
            if over and name != ours:
                there = spread(over)
                columns += [f"{value:.3f}" for value in (there.median, there.min, there.max)]
            table.add_row(name, *columns)
    return table


def make_matrix(title: str, rounds: Sequence[Round], rows: Sequence[str], columns: Sequence[str]) -> Table:
    """The median ratio of each row's contender over each column's."""
    table = Table(title=title)
    table.add_column("")
    for name in columns:
        table.add_column(f"/ {name}", justify="right")
    for row in rows:
        medians = [statistics.median(ratios(rounds, row, name) or [float("nan")]) for name in columns]
        table.add_row(row, *(f"{value:.3f}" for value in medians))
    return table
