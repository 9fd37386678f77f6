"""What measuring itself costs: training with everything recorded against training with nothing recorded.

*On* is more than a run does unless told otherwise: hops, times and the timeline, and a Prometheus exporter that listens
besides. *Off* (``metrics.record false``) keeps what training itself needs: losses, and seconds of computing. Two crews
with the same settings otherwise are there all the time and train in turn, in an order that changes from round to round,
so that both see the same machine. The driver's processor seconds are those of the thread with its loop, which does the
counting; they tell more than samples per second wherever these vary by more than what measuring costs.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.bench.workers import training_items
from distblock.config import Config, make_config
from distblock.errors import InputError
from distblock.messages import DataReport, Handling, WorkerReport
from distblock.preparation import Prepared, make_job, prepare
from distblock.report.monitor import Monitor
from distblock.report.tables import duration
from distblock.runtime import driver
from distblock.runtime.cluster import joined, placed
from distblock.runtime.crew import Crew, Job, crew
from distblock.schedule.course import AllAtOnce
from distblock.schedule.stopping import Patience

WARM_UP = 16
"""First microbatches of each turn that do not count: the pipeline fills."""

NUM_IMAGES = 1024
"""Of the made-up data set of CIFAR's size."""

WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Samples per second with everything recorded over those with nothing recorded."""

    rounds: int = 15
    """rounds; medians are printed, ratios are taken within one"""
    digits: int = 2000
    """microbatches of digits a turn (8x8, batch 64, resnet8 in 3 stages); 0: none"""
    cifar: int = 40
    """microbatches of CIFAR's size a turn (3x32x32, batch 128, resnet20 in 2 stages, made-up images); 0: none"""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of one crew.

    Attributes:
        samples_per_s: after the warm-up, by wall time, at the last worker.
        loop_s: processor seconds of the driver's loop for a microbatch.
    """

    samples_per_s: float
    loop_s: float


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained.

    Attributes:
        values: settings.
        dataset: made-up data; None: those that the settings name.
        microbatches: of a turn, without the warm-up.
    """

    values: Mapping[str, Any]
    dataset: Callable[[], TensorDataset] | None
    microbatches: int


@dataclass(frozen=True, kw_only=True)
class Side:
    """A crew that is ready, recording or not."""

    prepared: Prepared
    job: Job
    people: Crew


class _Timed(Monitor):
    """Reads the clocks at the last worker's reports, once all others who listen have had them."""

    begun: tuple[float, float] | None = None
    ended: tuple[float, float] = (0.0, 0.0)
    num_samples = 0
    num_microbatches = 0

    def record_passage(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        super().record_passage(report, handling)
        if not isinstance(report, WorkerReport) or report.worker != WORKERS - 1:
            return
        if report.item.number == WARM_UP - 1:
            self.begun = time.perf_counter(), time.thread_time()
        elif self.begun is not None:
            self.ended = time.perf_counter(), time.thread_time()
            self.num_samples += report.item.num_samples
            self.num_microbatches += 1

    def turn(self) -> Turn:
        """What it has seen."""
        assert self.begun is not None
        wall_s, loop_s = (ended - begun for begun, ended in zip(self.begun, self.ended, strict=True))
        return Turn(samples_per_s=self.num_samples / wall_s, loop_s=loop_s / self.num_microbatches)


def cifar_sized() -> TensorDataset:
    """Random images of CIFAR's size, in ten classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(NUM_IMAGES, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.arange(NUM_IMAGES) % 10)


def workloads(options: Options) -> dict[str, Workload]:
    """By name; those that were left out are not among them."""
    digits = {"data": {"name": "digits", "batch_size": 64}, "model": {"name": "resnet8", "stages": 3}}
    cifar = {"data": {"batch_size": 128}, "model": {"name": "resnet20", "stages": 2}}
    found = {
        "8x8, batch 64": Workload(values=digits, dataset=None, microbatches=options.digits),
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
    turns = measure(options)
    Console(width=120).print(_table(options, turns))
    conclude("measuring", options, make_outcome(turns))


def measure(options: Options) -> dict[str, list[dict[bool, Turn]]]:
    """By workload, then by round: turns by whether everything was recorded. A round before them does not count."""
    found = {}
    with joined(make_config({}), [{"CPU": 1.0}] * (2 * (WORKERS + 1))):
        for name, workload in workloads(options).items():
            with _sides(workload) as sides:
                rounds = [_round(sides, workload, turn) for turn in range(options.rounds + 1)]
            found[name] = rounds[1:]
    return found


@contextmanager
def _sides(workload: Workload) -> Iterator[dict[bool, Side]]:
    sides = {}
    with ExitStack() as stack:
        for is_on in (True, False):
            prepared = prepare(_config(workload, is_on=is_on), dataset=workload.dataset)
            job = make_job(prepared, run="bench", dataset=workload.dataset)
            group = stack.enter_context(placed([{"CPU": 1.0}] * (WORKERS + 1), strategy="PACK", note=print))
            sides[is_on] = Side(prepared=prepared, job=job, people=stack.enter_context(crew(job, group)))
        yield sides


def _config(workload: Workload, *, is_on: bool) -> Config:
    return make_config(
        {
            **workload.values,
            "regime": {"epochs": 10_000},
            "resources": {"workers": WORKERS},
            "metrics": {"record": is_on, "port": 0 if is_on else None},
        }
    )


def _round(sides: Mapping[bool, Side], workload: Workload, number: int) -> dict[bool, Turn]:
    order = (True, False) if number % 2 else (False, True)
    return {is_on: _turn(sides[is_on], workload) for is_on in order}


def _turn(side: Side, workload: Workload) -> Turn:
    prepared = side.prepared
    monitor = _Timed(
        prepared.config,
        run="bench",
        blueprint=prepared.blueprint,
        plan=prepared.plan,
        patience=Patience(None),
        console=Console(file=io.StringIO()),
    )
    with monitor:
        course = AllAtOnce(lambda _: training_items(prepared, WARM_UP + workload.microbatches))
        driver.carry_out(side.job, side.people, course, monitor, note=print)
    return monitor.turn()


def make_outcome(turns: Mapping[str, Sequence[Mapping[bool, Turn]]]) -> Outcome:
    """Ratios are of on over off, within a round."""
    figures = {
        name: [{"on": asdict(each[True]), "off": asdict(each[False])} for each in rounds]
        for name, rounds in turns.items()
    }
    return Outcome(
        figures=figures,
        ratios={
            f"{what}, on / off, {name}": [getattr(each[True], key) / getattr(each[False], key) for each in rounds]
            for what, key in (("samples/s", "samples_per_s"), ("driver's loop", "loop_s"))
            for name, rounds in turns.items()
        },
        picture=Bars(
            title="training with and without everything recorded",
            unit="samples/s, median",
            bars={
                word: {name: _median(rounds, is_on, "samples_per_s") for name, rounds in turns.items()}
                for word, is_on in (("on", True), ("off", False))
            },
        ),
    )


def _table(options: Options, turns: Mapping[str, Sequence[Mapping[bool, Turn]]]) -> Table:
    table = Table(title=f"what measuring costs, {WORKERS} workers, {options.rounds} rounds, medians")
    headings = ("microbatches", "samples/s: on", "off", "on / off", "min", "max", "driver's loop: on", "off", "more")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "microbatches" else "right")
    for name, rounds in turns.items():
        ratios = [each[True].samples_per_s / each[False].samples_per_s for each in rounds]
        more_s = statistics.median(each[True].loop_s - each[False].loop_s for each in rounds)
        table.add_row(
            name,
            *(f"{_median(rounds, is_on, 'samples_per_s'):.0f}" for is_on in (True, False)),
            *(f"{value:.4f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
            *(duration(_median(rounds, is_on, "loop_s")) for is_on in (True, False)),
            f"{1e6 * more_s:.0f} µs",
        )
    table.caption = "driver's loop: processor seconds of its thread for a microbatch that passes all workers"
    return table


def _median(rounds: Sequence[Mapping[bool, Turn]], is_on: bool, key: str) -> float:
    return statistics.median(getattr(each[is_on], key) for each in rounds)
