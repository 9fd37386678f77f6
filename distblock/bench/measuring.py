"""What measuring itself costs: training with everything recorded against training with nothing recorded.

*On* is more than a run does unless told otherwise: hops, times and the timeline, and a Prometheus exporter that listens
besides. *Off* (``metrics.record false``) keeps what training itself needs: losses, and seconds of computing. The
driver's processor seconds are those of the thread with its loop, which does the counting; they tell more than samples
per second wherever these vary by more than what measuring costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.bench.turns import Round, Workload, figures, measure, median, ratios
from distblock.errors import InputError
from distblock.report.tables import duration

NUM_IMAGES = 1024
"""Of the made-up data set of CIFAR's size."""

WORKERS = 2

SIDES: Mapping[str, Mapping[str, Any]] = {
    "on": {"metrics": {"record": True, "port": 0}},
    "off": {"metrics": {"record": False}},
}


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Samples per second with everything recorded over those with nothing recorded."""

    rounds: int = 15
    """rounds; medians are printed, ratios are taken within one"""
    digits: int = 2000
    """microbatches of digits a turn (8x8, batch 64, resnet8 in 3 stages); 0: none"""
    cifar: int = 40
    """microbatches of CIFAR's size a turn (3x32x32, batch 128, resnet20 in 2 stages, made-up images); 0: none"""


def cifar_sized() -> TensorDataset:
    """Random images of CIFAR's size, in ten classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(NUM_IMAGES, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.arange(NUM_IMAGES) % 10)


def workloads(options: Options) -> dict[str, Workload]:
    """By name; those that were left out are not among them."""
    workers = {"resources": {"workers": WORKERS}}
    digits = {"data": {"name": "digits", "batch_size": 64}, "model": {"name": "resnet8", "stages": 3}, **workers}
    cifar = {"data": {"batch_size": 128}, "model": {"name": "resnet20", "stages": 2}, **workers}
    found = {
        "8x8, batch 64": Workload(values=digits, microbatches=options.digits),
        "3x32x32, batch 128": Workload(values=cifar, dataset=cifar_sized, microbatches=options.cifar),
    }
    return {name: workload for name, workload in found.items() if workload.microbatches}


def main(arguments: Sequence[str]) -> None:
    """``distblock bench measuring``.

    Raises:
        InputError: a number that cannot be.
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "measuring", arguments)
    if options.rounds < 1 or min(options.digits, options.cifar) < 0 or not workloads(options):
        raise InputError("bench measuring: expected --rounds above 0, and --digits or --cifar above 0")
    turns = {name: measure(workload, SIDES, options.rounds) for name, workload in workloads(options).items()}
    Console(width=120).print(_table(options, turns))
    conclude("measuring", options, make_outcome(turns))


def make_outcome(turns: Mapping[str, Sequence[Round]]) -> Outcome:
    """Ratios are of on over off, within a round."""
    return Outcome(
        figures=figures(turns),
        ratios={
            f"{what}, on / off, {name}": ratios(rounds, "on", "off", key)
            for what, key in (("samples/s", "samples_per_s"), ("driver's loop", "loop_s"))
            for name, rounds in turns.items()
        },
        picture=Bars(
            title="training with and without everything recorded",
            unit="samples/s, median",
            bars={side: {name: median(rounds, side) for name, rounds in turns.items()} for side in SIDES},
        ),
    )


def _table(options: Options, turns: Mapping[str, Sequence[Round]]) -> Table:
    table = Table(title=f"what measuring costs, {WORKERS} workers, {options.rounds} rounds, medians")
    headings = ("microbatches", "samples/s: on", "off", "on / off", "min", "max", "driver's loop: on", "off", "more")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "microbatches" else "right")
    for name, rounds in turns.items():
        shares = ratios(rounds, "on", "off")
        more_s = statistics.median(each["on"].loop_s - each["off"].loop_s for each in rounds)
        table.add_row(
            name,
            *(f"{median(rounds, side):.0f}" for side in SIDES),
            *(f"{value:.4f}" for value in (statistics.median(shares), min(shares), max(shares))),
            *(duration(median(rounds, side, "loop_s")) for side in SIDES),
            f"{1e6 * more_s:.0f} µs",
        )
    table.caption = "driver's loop: processor seconds of its thread for a microbatch that passes all workers"
    return table
