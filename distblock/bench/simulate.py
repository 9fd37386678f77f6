"""The simulator against real runs: workers that sleep as long as they are told to instead of computing at length.

A run has a tiny network with a stage a worker; after every training microbatch each stage sleeps for seconds of its
own, drawn from a seed. What the steps themselves take is measured in a run without sleeping, and the simulator is given
the sum. What is compared is the seconds from the first microbatch's being asked for to the last one's end.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.bench.workers import training_items
from distblock.config import Config, make_config
from distblock.errors import InputError
from distblock.learning.allocator import jemalloc_here
from distblock.messages import DataReport, Handling, WorkerReport
from distblock.metrics.observer import Silent
from distblock.metrics.timeline import Timeline
from distblock.planning.simulation import simulate
from distblock.preparation import Prepared, make_job, prepare
from distblock.runtime import driver
from distblock.runtime.cluster import joined, placed
from distblock.runtime.crew import crew
from distblock.runtime.placement import bundles
from distblock.schedule.course import AllAtOnce

BATCH = 16
CPUS = 0.05
"""Of a worker, as Ray counts them: they sleep."""


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Simulated seconds over those of runs whose workers sleep."""

    workers: tuple[int, ...] = (2, 4, 8, 16)
    """numbers of workers, a stage each"""
    shortest_s: float = 0.1
    """least seconds that a worker sleeps after a microbatch"""
    longest_s: float = 0.3
    """most"""
    microbatches: int = 40
    """of each run, beside as many as there are workers"""
    rounds: int = 3
    """of each number of workers; the seconds are drawn anew in each"""
    seed: int = 0
    """of the seconds"""


class _Watch(Silent):
    def __init__(self) -> None:
        self.timeline = Timeline()

    def record_passage(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        self.timeline.record(report, handling)


def main(arguments: Sequence[str]) -> None:
    """``distblock bench simulate``.

    Raises:
        InputError: an option that cannot be.
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "simulate", arguments)
    if min(*options.workers, options.microbatches, options.rounds) < 1:
        raise InputError("bench simulate: expected --workers, --microbatches and --rounds above 0")
    if not 0 <= options.shortest_s <= options.longest_s:
        raise InputError("bench simulate: expected --shortest-s of 0 or more, and --longest-s no smaller")
    draw = random.Random(options.seed)
    found = {count: [_round(options, count, draw) for _ in range(options.rounds)] for count in options.workers}
    Console(width=120).print(_table(found))
    conclude("simulate", options, make_outcome(found))


Figures = Mapping[str, float]


def _round(options: Options, count: int, draw: random.Random) -> Figures:
    sleeps_s = [draw.uniform(options.shortest_s, options.longest_s) for _ in range(count)]
    microbatches = options.microbatches + count
    config = _config(count, microbatches)
    prepared = prepare(config)
    own_s = _steps_s(prepared, microbatches)
    rows = _run(prepared, sleeps_s, microbatches)
    measured_s = max(row["handled_s"] for row in rows) - min(row["sent_s"] for row in rows)
    computing = [own + sleep for own, sleep in zip(own_s, sleeps_s, strict=True)]
    told = simulate(computing, microbatches=microbatches, num_samples=BATCH, in_flight=config.channel.max_in_flight)
    return {"measured_s": measured_s, "simulated_s": told.wall_s, "slowest_s": max(computing)}


def _config(count: int, microbatches: int) -> Config:
    return make_config(
        {
            "data": {"batch_size": BATCH},
            "model": {"name": f"preact/{count}-1", "width": 4, "stages": count},
            "regime": {"epochs": 1 + microbatches * BATCH // 1000},
            "resources": {"cpus_per_worker": CPUS},
            "channel": {"microbatches_per_call": 1},
        }
    )


def _steps_s(prepared: Prepared, microbatches: int) -> list[float]:
    """What a step of each stage takes, in a run without sleeping, one microbatch at a time on its way."""
    one = prepared.config.channel.model_copy(update={"max_in_flight": 1})
    data = prepared.config.data.model_copy(update={"prefetch": 1})
    alone = replace(prepared, config=prepared.config.model_copy(update={"channel": one, "data": data}))
    rows = _run(alone, [0.0] * len(prepared.blueprint.hosts), min(microbatches, 20))
    return [
        statistics.median(row["finished_s"] - row["started_s"] for row in rows if row["worker"] == worker)
        for worker in range(len(prepared.blueprint.hosts))
    ]


def _run(prepared: Prepared, sleeps_s: Sequence[float], microbatches: int) -> list[dict[str, Any]]:
    """Rows of the timeline."""
    job = make_job(prepared, run="bench")
    delays_s = dict(enumerate(sleeps_s))
    job = replace(job, hosts=tuple(replace(spec, delays_s=delays_s) for spec in job.hosts))
    needed = bundles(prepared.config, num_workers=len(job.hosts))
    watch = _Watch()
    with (
        joined(prepared.config, needed),
        placed(needed, strategy="PACK", note=print) as group,
        crew(job, group, jemalloc=jemalloc_here()) as people,
    ):
        driver.carry_out(job, people, AllAtOnce(lambda _: training_items(prepared, microbatches)), watch, note=print)
    return watch.timeline.table().to_pylist()


def make_outcome(found: Mapping[int, Sequence[Figures]]) -> Outcome:
    """Simulated over measured, by number of workers."""
    ratios = {
        f"simulated / measured, {count} workers": [each["simulated_s"] / each["measured_s"] for each in rounds]
        for count, rounds in found.items()
    }
    bars = {
        what: {
            f"{count} workers": statistics.median(each[f"{what}_s"] for each in rounds)
            for count, rounds in found.items()
        }
        for what in ("measured", "simulated")
    }
    picture = Bars(title="runs of workers that sleep", unit="seconds, median", bars=bars)
    return Outcome(
        figures={str(count): list(rounds) for count, rounds in found.items()}, ratios=ratios, picture=picture
    )


def _table(found: Mapping[int, Sequence[Figures]]) -> Table:
    table = Table(title="simulated against measured, medians")
    for heading in ("workers", "measured", "simulated", "ratio", "min", "max"):
        table.add_column(heading, justify="right")
    for count, rounds in found.items():
        ratios = [each["simulated_s"] / each["measured_s"] for each in rounds]
        table.add_row(
            str(count),
            f"{statistics.median(each['measured_s'] for each in rounds):.2f} s",
            f"{statistics.median(each['simulated_s'] for each in rounds):.2f} s",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.3f}",
            f"{max(ratios):.3f}",
        )
    return table
