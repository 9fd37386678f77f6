"""What parcels save small microbatches: as many a call as ``auto`` takes, against one call for each.

Microbatches of digits (8x8, batch 64) through networks that are quick, quicker and quickest. A call costs about as much
however little its microbatch is worked on; where computing takes longer than a call, parcels can save little.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.bench.turns import Round, Workload, figures, measure, median, ratios
from distblock.errors import InputError

SIDES: Mapping[str, Mapping[str, Any]] = {
    "one a call": {"channel": {"microbatches_per_call": 1}},
    "auto": {"channel": {"microbatches_per_call": "auto"}},
}

WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Samples per second of small microbatches, many a call over one a call."""

    rounds: int = 5
    """rounds; medians are printed, ratios are taken within one"""
    microbatches: int = 2000
    """of 64 digits, a turn"""


class Dense(nn.Module):
    """A residual block without images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, width) to (N, width)."""
        return x + self.layer(x).relu()


def dense_network(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:  # noqa: ARG001
    """Three blocks of a matrix each, which take no time at all."""
    width = in_channels * image_size**2
    return [nn.Sequential(nn.Flatten(), Dense(width)), Dense(width), Dense(width)]


def workloads(options: Options) -> dict[str, Workload]:
    """By name, the slowest first."""
    resnets = {"resnet8": {"name": "resnet8"}, "resnet8, 4 channels": {"name": "resnet8", "width": 4}}
    found = {
        name: Workload(values=_values(model), microbatches=options.microbatches) for name, model in resnets.items()
    }
    dense = Workload(values=_values({"classifier": "linear"}), microbatches=options.microbatches, build=dense_network)
    return {**found, "a matrix a stage": dense}


def _values(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": {"name": "digits", "batch_size": 64}, "model": model, "resources": {"workers": WORKERS}}


def main(arguments: Sequence[str]) -> None:
    """``distblock bench parcels``.

    Raises:
        InputError: a number that cannot be.
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "parcels", arguments)
    if min(options.rounds, options.microbatches) < 1:
        raise InputError("bench parcels: expected --rounds and --microbatches above 0")
    turns = {name: measure(workload, SIDES, options.rounds) for name, workload in workloads(options).items()}
    Console(width=120).print(_table(options, turns))
    conclude("parcels", options, make_outcome(turns))


def make_outcome(turns: Mapping[str, Sequence[Round]]) -> Outcome:
    """Ratios are taken within a round."""
    return Outcome(
        figures=figures(turns),
        ratios={f"auto / one a call, {name}": ratios(rounds, "auto", "one a call") for name, rounds in turns.items()},
        picture=Bars(
            title="microbatches of 64 digits",
            unit="samples/s, median",
            bars={side: {name: median(rounds, side) for name, rounds in turns.items()} for side in SIDES},
        ),
    )


def _table(options: Options, turns: Mapping[str, Sequence[Round]]) -> Table:
    title = f"microbatches of 64 digits, {WORKERS} workers, {options.rounds} rounds, medians"
    table = Table(title=title)
    for heading in ("network", "samples/s: one a call", "auto", "auto / one a call", "min", "max"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, rounds in turns.items():
        gains = ratios(rounds, "auto", "one a call")
        table.add_row(
            name,
            *(f"{median(rounds, side):.0f}" for side in SIDES),
            *(f"{value:.2f}" for value in (statistics.median(gains), min(gains), max(gains))),
        )
    return table
