"""How close the pipeline comes to its bound.

The bound is what the slowest worker's own computing allows: samples over the seconds it computed, taken twice, in the
pipeline's run itself and with that worker's stages alone on the machine. What is missing to the first is waiting:
fetching, dispatching, credits. What is missing to the second is also what the workers take from each other: caches,
memory bandwidth, and the cores that the driver and the data worker use.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from distblock.config import make_config
from distblock.learning.host import HostSpec
from distblock.messages import Item, WorkerReport
from distblock.metrics.observer import Silent
from distblock.preparation import Prepared, make_job, prepare
from distblock.runtime import driver
from distblock.runtime.probe import run_alone
from distblock.schedule.course import AllAtOnce
from distblock.schedule.stream import stream

WARM_UP = 8
"""First microbatches that do not count: the pipeline fills, kernels are chosen, and images are decoded."""

TRAINING_SAMPLES = 45_000
"""CIFAR-10's, without the validation part."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Samples per second of the pipeline against its bound."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    model: str = "resnet20"
    """network"""
    workers: int = 2
    """workers, a stage each"""
    batch_size: int = 128
    """samples a microbatch"""
    microbatches: int = 40
    """microbatches a round that count"""
    rounds: int = 5
    """rounds; medians are printed"""
    augment: bool = False
    """crop and flip"""
    first_epoch: bool = False
    """count microbatches of a first epoch, whose images are still to be decoded; default: of later ones"""
    output: str | None = None
    """write the figures as JSON here"""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Samples per second of one round.

    Attributes:
        pipeline: of the workers together, from the end of the warm-up to the end of the last microbatch, at the
            slowest worker.
        bound: of the slowest worker's own computing, in that run.
        bound_alone: of the slowest worker's stages with nobody beside it.
    """

    pipeline: float
    bound: float
    bound_alone: float


class _Reports(Silent):
    """Keeps every worker report."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []

    def record(self, report: WorkerReport) -> None:
        self.reports.append(report)


def main(arguments: Sequence[str]) -> None:
    """``distblock bench pipeline --data-path DIR``."""
    options = tyro.cli(Options, args=list(arguments), prog="distblock bench pipeline")
    rounds = measure(options)
    Console().print(_table(options, rounds))
    if options.output is not None:
        content = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        figures = [asdict(each) for each in rounds]
        Path(options.output).write_text(
            json.dumps({**content, "options": asdict(options), "rounds": figures}, indent=2)
        )


def measure(options: Options) -> list[Round]:
    """All rounds: in each the workers together, then each worker's stages alone."""
    prepared = _prepare(options)
    job = make_job(prepared, run="bench")
    rounds = []
    for _ in range(options.rounds):
        reports = _Reports()
        driver.execute(job, AllAtOnce(lambda _: _items(options, prepared)), reports, note=print)
        alone = [_alone(spec, options, prepared) for spec in job.hosts]
        rounds.append(_round(reports.reports, len(job.hosts), alone))
    return rounds


def _prepare(options: Options) -> Prepared:
    # Decoded images stay in memory, so that all epochs but the first are alike; a short epoch comes to its end in the
    # warm-up.
    share = 1.0 if options.first_epoch else min(1.0, WARM_UP * options.batch_size / TRAINING_SAMPLES)
    config = make_config(
        {
            "data": {
                "name": "parquet",
                "path": options.data_path,
                "batch_size": options.batch_size,
                "fraction": share,
                "augment": ["crop", "flip"] if options.augment else [],
            },
            "model": {"name": options.model, "stages": options.workers},
            "regime": {"epochs": options.microbatches + WARM_UP},
        }
    )
    return prepare(config)


def _items(options: Options, prepared: Prepared) -> Iterator[Item]:
    training = (item for item in stream(prepared.plan) if item and item.purpose == "train")
    counted = itertools.islice(training, options.microbatches + WARM_UP)
    return (replace(item, number=number) for number, item in enumerate(counted))


def _round(reports: Sequence[WorkerReport], num_workers: int, alone: Sequence[float]) -> Round:
    by_worker = [[report for report in reports if report.worker == worker] for worker in range(num_workers)]
    computing = [sum(r.finished_s - r.started_s for r in worker[WARM_UP:]) for worker in by_worker]
    # The slowest worker sets the pace; seen from there, the pipeline's filling and draining fall outside the window.
    slowest = by_worker[computing.index(max(computing))]
    samples = sum(report.item.num_samples for report in slowest[WARM_UP:])
    seconds = slowest[-1].finished_s - slowest[WARM_UP - 1].finished_s
    return Round(pipeline=samples / seconds, bound=samples / max(computing), bound_alone=min(alone))


def _alone(spec: HostSpec, options: Options, prepared: Prepared) -> float:
    """Samples per second of one worker's own computing with no other worker beside it."""
    counted = run_alone(spec, list(_items(options, prepared)))[WARM_UP:]
    samples = sum(report.item.num_samples for report in counted)
    return samples / sum(report.finished_s - report.started_s for report in counted)


def _table(options: Options, rounds: Sequence[Round]) -> Table:
    table = Table(
        title=f"{options.model}, {options.workers} workers, batch {options.batch_size}, {options.rounds} rounds,"
        f" {'the first epoch' if options.first_epoch else 'later epochs'}"
    )
    for heading in ("", "samples/s", "pipeline / it, median", "min", "max"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("pipeline", f"{statistics.median(each.pipeline for each in rounds):.0f}", "", "", "")
    for name, key in (("bound, in the same run", "bound"), ("bound, worker alone", "bound_alone")):
        ratios = [each.pipeline / getattr(each, key) for each in rounds]
        middle = statistics.median(getattr(each, key) for each in rounds)
        table.add_row(name, f"{middle:.0f}", *(f"{f(ratios):.3f}" for f in (statistics.median, min, max)))
    return table
