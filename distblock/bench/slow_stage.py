"""A slow worker among quick ones: what it takes from the others, in the parallel and in the asynchronous regime.

One stage sleeps a while after every training microbatch. In the parallel regime all others then go at its pace; in the
asynchronous one they go on, with inputs that are dropped before the slow one and used again behind it. Accuracy is
compared after equal time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.config import make_config
from distblock.messages import WorkerReport
from distblock.metrics.accounting import Account
from distblock.metrics.observer import Silent
from distblock.preparation import make_course, make_job, prepare
from distblock.runtime import driver


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Microbatches a second of every stage, and accuracy after equal time."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    model: str = "resnet8"
    """network, one block a stage"""
    slow: int = 1
    """the stage that is slowed"""
    delay_s: float = 0.2
    """seconds by which each of its training microbatches is slowed"""
    fraction: float = 0.2
    """part of the training images"""
    batch_size: int = 128
    """samples a microbatch"""
    seconds: float = 60.0
    """time of training of each run"""
    seed: int = 0
    """seed"""


class _Watch(Silent):
    """An account, and how long training took."""

    def __init__(self, num_stages: int) -> None:
        self.account = Account(num_stages=num_stages)
        self._begun_s = 0.0
        self.trained_s = [0.0] * num_stages

    def begin(self) -> None:
        self._begun_s = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._begun_s

    def record(self, report: WorkerReport) -> None:
        self.account.record(report)
        if report.item.purpose == "train":
            for stage in report.stages:
                self.trained_s[stage.stage] = self.elapsed_s

    def record_drop(self, edge: int) -> None:
        self.account.record_drop(edge)


def main(arguments: Sequence[str]) -> None:
    """``distblock bench slow-stage --data-path DIR``.

    Raises:
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "slow-stage", arguments)
    runs = {
        (regime, delay_s): _measure(options, regime, delay_s)
        for delay_s in (0.0, options.delay_s)
        for regime in ("parallel", "asynchronous")
    }
    Console(width=140).print(_table(options, runs))
    conclude("slow-stage", options, make_outcome(runs))


def make_outcome(runs: Mapping[tuple[str, float], dict[str, list[Any]]]) -> Outcome:
    """Ratios are of the first stage's pace beside a slow stage over its pace where nobody is slow."""
    slow_s = max(delay_s for _, delay_s in runs)
    regimes = list(dict.fromkeys(regime for regime, _ in runs))
    return Outcome(
        figures=[{"regime": regime, "delay_s": delay_s, **run} for (regime, delay_s), run in runs.items()],
        ratios={
            f"stage 0 beside a slow one / nobody slow, {regime}": [
                runs[regime, slow_s]["fresh_per_s"][0] / runs[regime, 0.0]["fresh_per_s"][0]
            ]
            for regime in regimes
        },
        picture=Bars(
            title="a stage that is slow",
            unit="microbatches a second",
            bars={
                f"{regime}, {'slow' if delay_s else 'nobody slow'}": {
                    f"stage {stage}": pace for stage, pace in enumerate(run["fresh_per_s"])
                }
                for (regime, delay_s), run in runs.items()
            },
        ),
    )


def _measure(options: Options, regime: str, delay_s: float) -> dict[str, list[Any]]:
    config = make_config(
        {
            "seed": options.seed,
            "data": {
                "name": "parquet",
                "path": options.data_path,
                "batch_size": options.batch_size,
                "fraction": options.fraction,
            },
            "model": {"name": options.model},
            "optimizer": {"schedule": "constant"},
            "regime": {"name": regime, "epochs": 10_000, "evaluate_every": 10_000},
        }
    )
    prepared = prepare(config)
    job = make_job(prepared, run="bench")
    job = replace(job, hosts=tuple(replace(spec, delays_s={options.slow: delay_s}) for spec in job.hosts))
    num_stages = prepared.blueprint.num_stages
    watch = _Watch(num_stages)
    course = make_course(prepared, out_of_time=lambda: watch.elapsed_s >= options.seconds)
    driver.execute(job, course, watch, note=print)
    account, rows = watch.account, watch.account.rows()
    totals = account.totals()
    last = [max((row for row in rows if row.stage == stage), key=lambda row: row.epoch) for stage in range(num_stages)]
    return {
        "fresh_per_s": [t.num_samples / options.batch_size / s for t, s in zip(totals, watch.trained_s, strict=True)],
        "reuses_per_s": [account.reuses(stage) / watch.trained_s[stage] for stage in range(num_stages)],
        "idle_share": [t.idle_s / (t.idle_s + t.compute_s) for t in totals],
        "dropped": [account.drops(stage) for stage in range(num_stages)],
        "staleness": [account.staleness(stage).mean for stage in range(num_stages)],
        "test_accuracy": [row.test_accuracy for row in last],
    }


def _table(options: Options, runs: dict[tuple[str, float], dict[str, list[Any]]]) -> Table:
    table = Table(
        title=f"{options.model}, stage {options.slow} slowed by {options.delay_s} s a microbatch of"
        f" {options.batch_size}, {options.seconds:.0f} s of training each"
    )
    headings = ("regime", "slowed", "stage", "fresh/s", "used again/s", "idle", "dropped", "staleness", "test accuracy")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "regime" else "right")
    for (regime, delay_s), run in runs.items():
        for stage, fresh in enumerate(run["fresh_per_s"]):
            staleness = run["staleness"][stage]
            table.add_row(
                regime if stage == 0 else "",
                ("yes" if delay_s else "no") if stage == 0 else "",
                str(stage),
                f"{fresh:.2f}",
                f"{run['reuses_per_s'][stage]:.2f}",
                f"{run['idle_share'][stage]:.0%}",
                str(run["dropped"][stage]),
                "-" if staleness is None else f"{staleness:.1f}",
                f"{run['test_accuracy'][stage]:.1%}",
                end_section=stage == len(run["fresh_per_s"]) - 1,
            )
    return table
