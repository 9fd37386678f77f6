"""What a hop costs the driver, by number of stages: it should not grow.

The driver's own loop, dispatcher, credits and seats work with actors that say what workers say and compute nothing. A
*call* is one microbatch at one worker, or at the data worker: one actor call out, one report in. Seconds of the
processor are those of the whole driver process, Ray's threads in it included; wall seconds are more than a driver's own
wherever the actors have to share its cores. Crews of all sizes are there all the time, and are used in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import ray
from rich.console import Console
from rich.table import Table

from distblock.bench.idle import IdleWorker
from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Lines
from distblock.bench.workers import training_items
from distblock.config import Config, make_config
from distblock.errors import InputError
from distblock.messages import Departure, Item, WorkerReport
from distblock.metrics.observer import Silent
from distblock.preparation import Prepared, make_job, prepare
from distblock.report.tables import duration
from distblock.runtime import driver
from distblock.runtime.cluster import joined, placed
from distblock.runtime.crew import Crew, Job, num_threads
from distblock.runtime.handover import Beginning
from distblock.runtime.seats import Actor
from distblock.schedule.course import AllAtOnce

MOST_STAGES = 64
"""Blocks of the network that is cut into stages."""


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """The driver's seconds for a call, by number of stages."""

    stages: tuple[int, ...] = (4, 16, 64)
    """numbers of stages, a worker each"""
    calls: int = 4000
    """calls a round that count, about; but the pipeline is filled twice at least"""
    rounds: int = 5
    """rounds; medians are printed, ratios are taken within one"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one call, in one round.

    Attributes:
        cpu_s: of the driver process, all its threads.
        loop_s: of these, those of the thread with the driver's loop.
        wall_s: wall time over calls.
    """

    cpu_s: float
    loop_s: float
    wall_s: float


class IdleCrew(Crew):
    """Seats as in a run, with actors that compute nothing."""

    def start_group(self, index: int, beginning: Beginning) -> list[Actor]:  # noqa: ARG002
        """One actor."""
        return [
            ray.remote(IdleWorker)
            .options(num_cpus=0, max_concurrency=num_threads(self._job.hosts[index].config))
            .remote(index)
        ]

    def start_feeder(self, index: int, beginning: Beginning) -> list[Actor]:  # noqa: ARG002
        """One actor."""
        return [ray.remote(IdleWorker).options(num_cpus=0).remote(index)]


class _Meter(Silent):
    """Reads the clocks when the pipeline is full, the first microbatch having left it, and at every later call.

    Args:
        last: the last worker.
    """

    def __init__(self, last: int) -> None:
        self._last = last
        self._is_counting = False
        self._calls = 0
        self._begun = self._ended = Cost(cpu_s=0.0, loop_s=0.0, wall_s=0.0)

    def record(self, report: WorkerReport) -> None:
        self._count()
        if report.worker == self._last and report.item.number == 0:
            self._is_counting, self._begun = True, _clocks()

    def record_departure(self, departure: Departure, node: str, item: Item) -> None:  # noqa: ARG002
        self._count()

    def cost(self) -> Cost:
        """Of one call."""
        begun, ended = asdict(self._begun), asdict(self._ended)
        return Cost(**{key: (ended[key] - begun[key]) / self._calls for key in ended})

    def _count(self) -> None:
        if self._is_counting:
            self._calls += 1
            self._ended = _clocks()


def main(arguments: Sequence[str]) -> None:
    """``distblock bench driver``.

    Raises:
        InputError: a number that cannot be.
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "driver", arguments)
    if not options.stages or not all(1 <= number <= MOST_STAGES for number in options.stages):
        raise InputError(f"--stages: expected numbers from 1 to {MOST_STAGES}, got {options.stages}")
    if min(options.calls, options.rounds) < 1:
        raise InputError("bench driver: expected --calls and --rounds above 0")
    costs = measure(options)
    Console(width=120).print(_table(options, costs))
    conclude("driver", options, make_outcome(costs))


def measure(options: Options) -> dict[int, list[Cost]]:
    """A cost a round, by number of stages; a round before them does not count."""
    prepared = {number: prepare(_config(number)) for number in options.stages}
    jobs = {number: make_job(each, run="bench") for number, each in prepared.items()}
    needed = {number: [{"CPU": 1.0}] * (number + 1) for number in options.stages}
    costs: dict[int, list[Cost]] = {number: [] for number in options.stages}
    with ExitStack() as stack:
        stack.enter_context(joined(_config(1), [bundle for each in needed.values() for bundle in each]))
        crews: dict[int, Crew] = {}
        for number, job in jobs.items():
            group = stack.enter_context(placed(needed[number], strategy="PACK", note=print))
            crews[number] = IdleCrew(job, group, jemalloc=None)
            stack.callback(crews[number].close)
            crews[number].await_ready()
        for _ in range(options.rounds + 1):
            for number, job in jobs.items():
                costs[number].append(_round(options, prepared[number], job, crews[number]))
    return {number: each[1:] for number, each in costs.items()}


def _config(stages: int) -> Config:
    # Nothing of the network is computed: its blocks are as small as can be.
    return make_config(
        {
            "model": {"name": f"preact/4-{MOST_STAGES // 4}", "stages": stages, "width": 4},
            "regime": {"epochs": 10_000},
            "channel": {"microbatches_per_call": 1},
        }
    )


def _round(options: Options, prepared: Prepared, job: Job, crew: Crew) -> Cost:
    stages = len(job.hosts)
    meter = _Meter(stages - 1)
    course = AllAtOnce(lambda _: training_items(prepared, max(options.calls // (stages + 1), 2 * stages)))
    driver.carry_out(job, crew, course, meter, note=print)
    return meter.cost()


def make_outcome(costs: dict[int, list[Cost]]) -> Outcome:
    """Ratios are those of the most stages over the fewest, within a round."""
    fewest, most = min(costs), max(costs)
    return Outcome(
        figures={number: [asdict(cost) for cost in each] for number, each in costs.items()},
        ratios={
            f"{what} a call, {most} stages / {fewest}": [
                getattr(many, key) / getattr(few, key) for few, many in zip(costs[fewest], costs[most], strict=True)
            ]
            for what, key in (("driver's CPU", "cpu_s"), ("its loop's CPU", "loop_s"), ("wall time", "wall_s"))
        },
        picture=Lines(
            title="what a call costs the driver",
            across="stages, a worker each",
            upward="seconds a call, median",
            lines={
                name: {float(number): _median(each, key) for number, each in costs.items()}
                for name, key in (("CPU of the driver", "cpu_s"), ("CPU of its loop", "loop_s"), ("wall", "wall_s"))
            },
        ),
    )


def _table(options: Options, costs: dict[int, list[Cost]]) -> Table:
    table = Table(title=f"a call at the driver, workers that compute nothing, {options.rounds} rounds, medians")
    for heading in ("stages", "driver's CPU", "min", "max", "of it, the loop's", "wall"):
        table.add_column(heading, justify="right")
    for number, each in costs.items():
        cpu = [cost.cpu_s for cost in each]
        seconds = (_median(each, "cpu_s"), min(cpu), max(cpu), _median(each, "loop_s"), _median(each, "wall_s"))
        table.add_row(str(number), *(duration(value) for value in seconds))
    return table


def _median(costs: Sequence[Cost], key: str) -> float:
    return statistics.median(getattr(cost, key) for cost in costs)


def _clocks() -> Cost:
    return Cost(cpu_s=time.process_time(), loop_s=time.thread_time(), wall_s=time.perf_counter())
