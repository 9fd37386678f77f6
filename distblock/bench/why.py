"""Whether ``distblock why`` is right: causes are planted in short runs, and the runs are made without them, too.

A round has a run with nothing planted, then one with each cause. For each, the verdict's first cause has to be the
planted one; its seconds are held against those by which the run with it took longer than the run without, which is at
the same time the confirmation of its "what if": the run that makes the change. The causes: a stage that sleeps, a data
set that is slow to read, a driver that is kept busy, a worker that is stopped for a while (SIGSTOP), and, with
``--hosts``, a link that is throttled (tc tbf). A link cannot be done away with, so its "what if" is that it is twice as
fast; and that of a slow stage is that it is as quick as the next slowest, which need not be as quick as it is itself
without the cause. Of both, a further run makes the change: over a link twice as fast, or with a stage that sleeps for
less, by as much as the verdict says that it is slower.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import ray
from rich.console import Console
from rich.table import Table

from distblock.bench.on_hosts import bits_per_s, check_hosts, train_on_hosts
from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.bench.workers import training_items
from distblock.config import make_config
from distblock.errors import InputError, RunFailedError
from distblock.learning.allocator import jemalloc_here
from distblock.messages import DataReport, Handling, WorkerReport
from distblock.metrics.observer import Silent
from distblock.metrics.timeline import Timeline
from distblock.preparation import make_job, prepare
from distblock.reasons import judge_run
from distblock.report.calibration import recording
from distblock.report.tables import duration
from distblock.report.verdict import TWICE, Verdict, judge
from distblock.runs import RunDirectory
from distblock.runtime import driver
from distblock.runtime.cluster import joined, placed
from distblock.runtime.crew import crew
from distblock.schedule.course import AllAtOnce

Planted = Literal["stage", "data", "driver", "stop", "edge"]

KINDS: Mapping[Planted, str] = {
    "stage": "worker",
    "data": "data",
    "driver": "driver",
    "stop": "stopped worker",
    "edge": "edge",
}
"""What the verdict calls each."""

STAGE_S = 0.03
"""That each stage sleeps after every training microbatch, as long as a device of its own might compute: where cores are
short, whoever is made to wait leaves more of them to the others, and no replay of what was measured can know that."""

SLOW_STAGE_S = 0.08
SLOW_SAMPLE_S = 0.001
BUSY_DRIVER_S = 0.05
STOP_S = 4.0


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Whether `distblock why` names what was planted."""

    causes: tuple[Planted, ...] = ("stage", "data", "driver", "stop")
    """which are planted, beside that of --hosts"""
    microbatches: int = 240
    """of each run that count"""
    warmup: int = 40
    """microbatches of each run before those"""
    batch_size: int = 64
    """samples a microbatch"""
    rounds: int = 3
    """of all of them"""
    hosts: bool = False
    """a throttled link, too, between two hosts of this machine (cluster/hosts; root, from a checkout)"""
    rate: str = "20mbit"
    """with --hosts: of the throttled link, as tc writes it"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run with a cause in it, and one without.

    Attributes:
        planted: the cause.
        verdict: on the run with it.
        without_s: what the run without it took.
        made_s: of a link and of a stage: what the run took that makes the change.
    """

    planted: Planted
    verdict: Verdict
    without_s: float
    made_s: float | None = None

    @property
    def is_named(self) -> bool:
        """The first cause is the planted one."""
        return bool(self.verdict.causes) and self.verdict.causes[0].kind == KINDS[self.planted]

    @property
    def seconds(self) -> float:
        """That the verdict says it costs."""
        return self.verdict.causes[0].seconds if self.verdict.causes else 0.0

    @property
    def seconds_ratio(self) -> float:
        """Those over the seconds by which the run took longer."""
        return self.seconds / (self.verdict.measured_s - self.without_s)

    @property
    def changed_s(self) -> float:
        """What a run took that makes the change."""
        return self.without_s if self.made_s is None else self.made_s

    @property
    def foretold_s(self) -> float:
        """What the run would have taken so, by the verdict."""
        if self.planted != "edge":
            return self.verdict.measured_s - self.seconds
        (what_if,) = [each for each in self.verdict.what_ifs if each.change == TWICE]
        return self.verdict.measured_s * self.verdict.samples_per_s / what_if.samples_per_s

    @property
    def what_if_ratio(self) -> float:
        """The one over the other."""
        return self.foretold_s / self.changed_s


class _Watch(Silent):
    """Records when each microbatch was where; may keep the driver busy; says when the run is well under way."""

    def __init__(self, busy_s: float, *, well_under_way: int) -> None:
        self._busy_s = busy_s
        self._well_under_way = well_under_way
        self.is_well_under_way = threading.Event()
        self.timeline = Timeline()
        self.microbatches, self.driver_s = 0, 0.0

    def record_passage(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        self.timeline.record(report, handling)

    def record_driver(self, busy_s: float, num_microbatches: int) -> None:
        self.microbatches, self.driver_s = self.microbatches + num_microbatches, self.driver_s + busy_s

    def record(self, report: WorkerReport) -> None:
        time.sleep(self._busy_s)
        if report.item.number >= self._well_under_way:
            self.is_well_under_way.set()


class Samples:
    """Digits-sized images that are slow to read, each of them new.

    Args:
        count: how many.
        sample_s: seconds that one takes.
    """

    def __init__(self, count: int, sample_s: float) -> None:
        self.targets = [index % 10 for index in range(count)]
        self._sample_s = sample_s

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if self._sample_s:
            time.sleep(self._sample_s)
        return np.random.default_rng(index).random((8, 8, 1), dtype=np.float32), self.targets[index]


def samples(part: str, *, count: int, sample_s: float) -> Samples:
    """A part of them; what is not trained on is quick."""
    return Samples(count, sample_s) if part == "train" else Samples(20, 0.0)


def main(arguments: Sequence[str]) -> None:
    """``distblock bench why``.

    Raises:
        InputError: a number that cannot be, or hosts cannot be made here.
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "why", arguments)
    if min(options.microbatches, options.batch_size, options.rounds) < 1 or options.warmup < 0:
        raise InputError("bench why: expected --microbatches, --batch-size and --rounds above 0, --warmup 0 or more")
    if "edge" in options.causes:
        raise InputError("--causes: expected edge to be left to --hosts, which plants it beside the others")
    if options.hosts:
        if not 0 < bits_per_s(options.rate, "--rate") < math.inf:
            raise InputError(f"--rate: expected that of a throttled link, such as 20mbit, got {options.rate}")
        check_hosts()
    trials = [trial for _ in range(options.rounds) for trial in _round(options)]
    Console(width=120).print(_table(options, trials))
    conclude("why", options, make_outcome(trials))


def _round(options: Options) -> list[Trial]:
    without_s = measure(options, None).measured_s
    trials = [_with(options, planted, without_s) for planted in options.causes]
    if options.hosts:
        twice = f"{2 * bits_per_s(options.rate, '--rate'):.0f}bit"
        free, throttled, doubled = (_on_hosts(options, rate) for rate in (None, options.rate, twice))
        trials.append(Trial(planted="edge", verdict=throttled, without_s=free.measured_s, made_s=doubled.measured_s))
    return trials


def _with(options: Options, planted: Planted, without_s: float) -> Trial:
    trial = Trial(planted=planted, verdict=measure(options, planted), without_s=without_s)
    first = next(iter(trial.verdict.causes), None)
    # Where another cause is found first, there is nothing to confirm but that nothing is planted.
    if planted != "stage" or first is None or first.place != 2 or first.beyond_s is None:
        return trial
    made = measure(options, None, last_s=max(0.0, SLOW_STAGE_S - first.beyond_s))
    return replace(trial, made_s=made.measured_s)


def measure(options: Options, planted: Planted | None, *, last_s: float = STAGE_S) -> Verdict:
    """A run on this machine, and the verdict on it.

    What counts begins when everything has run for a while: a process's first steps take longer than its others.

    Args:
        options: of the benchmark.
        planted: the cause.
        last_s: that the last stage sleeps, where it is not the cause.
    """
    config = make_config(
        {
            "data": {"batch_size": options.batch_size},
            "model": {"stages": 2},
            "resources": {"workers": 2},
            "regime": {"epochs": 1},
        }
    )
    num_microbatches = options.warmup + options.microbatches
    sample_s = SLOW_SAMPLE_S if planted == "data" else 0.0
    dataset = partial(samples, count=options.batch_size * (num_microbatches + 1), sample_s=sample_s)
    prepared = prepare(config, dataset=dataset)
    job = make_job(prepared, run="bench", dataset=dataset)
    delays_s = {0: STAGE_S, 1: SLOW_STAGE_S if planted == "stage" else last_s}
    job = replace(job, hosts=tuple(replace(spec, delays_s=delays_s) for spec in job.hosts))
    busy_s = BUSY_DRIVER_S if planted == "driver" else 0.0
    watch = _Watch(busy_s, well_under_way=options.warmup + options.microbatches // 4)
    needed = [{"CPU": 1.0}] * 3
    with (
        joined(config, needed),
        placed(needed, strategy="PACK", note=print) as group,
        crew(job, group, jemalloc=jemalloc_here()) as people,
    ):
        course = AllAtOnce(lambda _: training_items(prepared, num_microbatches))
        stopping = partial(_stopping, people.workers[1].actors[0], watch.is_well_under_way)
        with stopping() if planted == "stop" else nullcontext():
            driver.carry_out(job, people, course, watch, note=print)
    timeline = watch.timeline.table()
    counting = timeline.filter(pc.field("number") >= options.warmup)
    found = recording(counting, config, driver_s=watch.driver_s / watch.microbatches)
    return judge(found, codec=config.channel.codec)


@contextmanager
def _stopping(actor: Any, begin: threading.Event) -> Iterator[None]:
    """Within the block a worker is stopped once, and goes on again."""
    stopper = threading.Thread(target=_stop, args=(actor, begin), daemon=True)
    stopper.start()
    yield
    stopper.join()


def _stop(actor: Any, begin: threading.Event) -> None:
    """Stop a worker's process for a while, in the middle of its work."""
    pid: Any = ray.get(actor.__ray_call__.remote(_pid))
    begin.wait()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOP_S)
    os.kill(pid, signal.SIGCONT)


def _pid(worker: Any) -> int:  # noqa: ARG001
    return os.getpid()


def _on_hosts(options: Options, rate: str | None) -> Verdict:
    flags = ["--model.stages", "2", "--resources.workers", "2", "--data.batch-size", str(options.batch_size)]
    flags += ["--regime.epochs", str(max(1, options.microbatches * options.batch_size // 1294))]
    with tempfile.TemporaryDirectory(prefix="distblock-bench-") as folder:
        kept = Path(folder) / "kept"
        ran = train_on_hosts(
            # Two processors a worker: so the data are beside the first one, and only activations cross.
            [*flags, "--resources.cpus-per-worker", "2"],
            cpus=[3, 2],
            rate=rate,
            delay_s=0.0,
            shared=None,
            then=lambda run: shutil.copytree(run, kept),
        )
        if ran.summary["data_edge"]["cross_node_hops"]:
            raise RunFailedError("bench why: expected the data beside the first worker, but they crossed the link, too")
        return judge_run(RunDirectory.at(kept))


def make_outcome(trials: Sequence[Trial]) -> Outcome:
    """Ratios of each cause: whether it was named, and its seconds, as they were foretold over as they were."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        found.setdefault(f"{trial.planted}: named", []).append(float(trial.is_named))
        found.setdefault(f"{trial.planted}: seconds", []).append(trial.seconds_ratio)
        found.setdefault(f"{trial.planted}: what if", []).append(trial.what_if_ratio)
    kinds = list(dict.fromkeys(trial.planted for trial in trials))
    bars = {
        name: {
            kind: float(np.median([getattr(trial, key) for trial in trials if trial.planted == kind])) for kind in kinds
        }
        for name, key in (("seconds", "seconds_ratio"), ("what if", "what_if_ratio"))
    }
    picture = Bars(title="planted causes", unit="foretold over measured", bars=bars)
    return Outcome(figures=[_figures(trial) for trial in trials], ratios=found, picture=picture)


def _figures(trial: Trial) -> dict[str, Any]:
    causes = [{"kind": each.kind, "where": each.where, "seconds": each.seconds} for each in trial.verdict.causes[:3]]
    return {
        "planted": trial.planted,
        "measured_s": trial.verdict.measured_s,
        "replayed_s": trial.verdict.replayed_s,
        "without_s": trial.without_s,
        "made_s": trial.made_s,
        "foretold_s": trial.foretold_s,
        "causes": causes,
    }


def _table(options: Options, trials: Sequence[Trial]) -> Table:
    title = f"planted causes, {options.microbatches} microbatches of {options.batch_size}, two workers"
    table = Table(title=title)
    for heading in ("planted", "named first", "its seconds", "longer by", "ratio", "run with the change", "foretold"):
        table.add_column(heading, justify="right")
    for trial in trials:
        verdict = trial.verdict
        table.add_row(
            trial.planted,
            f"{verdict.causes[0].kind}: {verdict.causes[0].where}" if verdict.causes else "nothing",
            duration(trial.seconds),
            duration(verdict.measured_s - trial.without_s),
            f"{trial.seconds_ratio:.2f}",
            duration(trial.changed_s),
            duration(trial.foretold_s),
        )
    return table
