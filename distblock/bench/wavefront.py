"""Laps on all workers at once, against one stage at a time.

R laps of K equal stages take R + K - 1 phases instead of R * K. How much of that is seen depends on how equal the
stages are, on how inputs reach a stage (from a cache, or through frozen stages whose forward passes go beside the
training), and on whether two workers at once compute as fast as one by itself: the last column says how much longer
the same steps took. ``--pace-s`` makes steps wait as they would for a device of their own, and so shows what is lost
besides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.config import make_config
from distblock.messages import WorkerReport
from distblock.metrics.observer import Silent
from distblock.preparation import make_course, make_job, prepare
from distblock.runtime import driver

INPUTS = ("cache", "frozen")


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Wall time of the wavefront over that of multi-lap on the same workers."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    model: str = "resnet20"
    """network"""
    stages: int = 2
    """stages, a worker each"""
    laps: int = 4
    """laps"""
    epochs: int = 1
    """epochs a lap"""
    fraction: float = 0.05
    """part of the training images"""
    batch_size: int = 128
    """samples a microbatch"""
    pace_s: float = 0.0
    """seconds that each training step sleeps"""
    rounds: int = 3
    """rounds; medians are printed"""


class _Timer(Silent):
    """Seconds from the beginning to the last report, and seconds of training steps in all."""

    def begin(self) -> None:
        self._begun_s = time.perf_counter()
        self.wall_s = self.steps_s = 0.0

    def record(self, report: WorkerReport) -> None:
        self.wall_s = time.perf_counter() - self._begun_s
        self.steps_s += sum(stage.compute_s for stage in report.stages if stage.role == "train")


def main(arguments: Sequence[str]) -> None:
    """``distblock bench wavefront --data-path DIR``.

    Raises:
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "wavefront", arguments)
    rounds = [_round(options) for _ in range(options.rounds)]
    Console(width=120).print(_table(options, rounds))
    conclude("wavefront", options, make_outcome(rounds))


def make_outcome(rounds: Sequence[dict[str, dict[str, float]]]) -> Outcome:
    """Ratios are of the wavefront over one stage at a time, within a round."""
    walls = {key: [each[key]["wall_s"] for each in rounds] for key in rounds[0]}
    bars = {
        regime: {inputs: statistics.median(walls[f"{inputs}/{regime}"]) for inputs in INPUTS}
        for regime in ("multi-lap", "wavefront")
    }
    return Outcome(
        figures=rounds,
        ratios={
            f"wavefront / one stage at a time, {inputs}": [
                wave / one for wave, one in zip(walls[f"{inputs}/wavefront"], walls[f"{inputs}/multi-lap"], strict=True)
            ]
            for inputs in INPUTS
        },
        picture=Bars(title="laps on all workers, and one stage at a time", unit="seconds, median", bars=bars),
    )


def _round(options: Options) -> dict[str, dict[str, float]]:
    """Seconds of each regime with each kind of inputs, one after the other."""
    return {
        f"{inputs}/{regime}": _seconds(options, inputs, regime)
        for inputs in INPUTS
        for regime in ("multi-lap", "wavefront")
    }


def _seconds(options: Options, inputs: str, regime: str) -> dict[str, float]:
    values: dict[str, Any] = {
        "data": {
            "name": "parquet",
            "path": options.data_path,
            "batch_size": options.batch_size,
            "fraction": options.fraction,
        },
        "model": {"name": options.model, "stages": options.stages},
        "regime": {
            "name": regime,
            "laps": options.laps,
            "epochs": options.epochs,
            "inputs": inputs,
            "evaluate_every": options.epochs,
        },
    }
    prepared = prepare(make_config(values))
    # Training is what is timed: evaluations and what is stored for them are cut to a microbatch.
    plan = replace(prepared.plan, num_validation=options.batch_size, num_test=options.batch_size)
    prepared = replace(prepared, plan=plan)
    job = make_job(prepared, run="bench")
    delays_s = dict.fromkeys(range(options.stages), options.pace_s)
    job = replace(job, hosts=tuple(replace(spec, delays_s=delays_s) for spec in job.hosts))
    timer = _Timer()
    driver.execute(job, make_course(prepared), timer, note=print)
    return {"wall_s": timer.wall_s, "steps_s": timer.steps_s}


def _table(options: Options, rounds: Sequence[dict[str, dict[str, float]]]) -> Table:
    stages, laps = options.stages, options.laps
    phases = laps + stages - 1
    table = Table(
        title=f"{options.model}, {stages} stages and workers, {laps} laps of {options.epochs} epochs,"
        f" steps paced by {options.pace_s} s, {len(rounds)} rounds; {phases} phases against {laps * stages}:"
        f" {phases / (laps * stages):.3f}"
    )
    headings = (
        "inputs",
        "one stage at a time",
        "wavefront",
        "wavefront / it, median",
        "min",
        "max",
        "steps / its steps",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "inputs" else "right")
    for inputs in INPUTS:
        one, wave = ([each[f"{inputs}/{regime}"] for each in rounds] for regime in ("multi-lap", "wavefront"))
        ratios, steps = ([b[key] / a[key] for a, b in zip(one, wave, strict=True)] for key in ("wall_s", "steps_s"))
        table.add_row(
            inputs,
            *(f"{statistics.median(each['wall_s'] for each in runs):.1f} s" for runs in (one, wave)),
            *(f"{f(ratios):.3f}" for f in (statistics.median, min, max)),
            f"{statistics.median(steps):.2f}",
        )
    return table
