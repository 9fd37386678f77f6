"""Crews with the same settings but for one, there all the time, that train in turn: all see the same machine.

Starting a crew takes longer than what is compared, and a machine changes meanwhile; so all are started first, and the
order of their turns changes from round to round.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from torch.utils.data import TensorDataset

from distblock.bench.workers import training_items
from distblock.config import make_config
from distblock.learning.allocator import jemalloc_here
from distblock.learning.blueprint import Build
from distblock.messages import DataReport, Handling, WorkerReport
from distblock.preparation import Prepared, make_job, prepare
from distblock.report.monitor import Monitor
from distblock.runtime import driver
from distblock.runtime.cluster import joined, placed
from distblock.runtime.crew import Crew, Job, crew
from distblock.schedule.course import AllAtOnce
from distblock.schedule.stopping import Patience

WARM_UP = 16
"""First microbatches of each turn that do not count: the pipeline fills."""


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
        values: settings, ``resources.workers`` among them.
        microbatches: of a turn, without the warm-up.
        dataset: made-up data; None: those that the settings name.
        build: the network, where the settings name none.
    """

    values: Mapping[str, Any]
    microbatches: int
    dataset: Callable[[], TensorDataset] | None = None
    build: Build | None = None

    @property
    def workers(self) -> int:
        """Of each side."""
        return self.values["resources"]["workers"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A crew that is ready."""

    prepared: Prepared
    job: Job
    people: Crew


Round = Mapping[str, Turn]
"""By side."""


class _Timed(Monitor):
    """Reads the clocks at the last worker's reports, once all others who listen have had them."""

    begun: tuple[float, float] | None = None
    ended: tuple[float, float] = (0.0, 0.0)
    num_samples = 0
    num_microbatches = 0

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(
            prepared.config,
            run="bench",
            blueprint=prepared.blueprint,
            plan=prepared.plan,
            patience=Patience(None),
            console=Console(file=io.StringIO()),
        )
        self._last = len(prepared.blueprint.hosts) - 1
        self._begun_with = float("nan")

    def record_passage(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        super().record_passage(report, handling)
        if not isinstance(report, WorkerReport) or report.worker != self._last:
            return
        now = time.perf_counter(), time.thread_time()
        if self.begun is None or handling.told_s == self._begun_with:
            # Reports of a parcel come together: the warm-up ends with the whole parcel of its last microbatch.
            if report.item.number >= WARM_UP - 1:
                self.begun, self._begun_with = now, handling.told_s
            return
        self.ended = now
        self.num_samples += report.item.num_samples
        self.num_microbatches += 1

    def turn(self) -> Turn:
        """What it has seen."""
        assert self.begun is not None
        wall_s, loop_s = (ended - begun for begun, ended in zip(self.begun, self.ended, strict=True))
        return Turn(samples_per_s=self.num_samples / wall_s, loop_s=loop_s / self.num_microbatches)


def measure(workload: Workload, sides: Mapping[str, Mapping[str, Any]], rounds: int) -> list[Round]:
    """Turns of each side, by round. A round before them does not count.

    Args:
        workload: what all of them train.
        sides: by name, the section and its settings that are a side's own.
        rounds: how many.
    """
    bundles = [{"CPU": 1.0}] * (len(sides) * (workload.workers + 1))
    with joined(make_config({}), bundles), _ready(workload, sides) as ready:
        found = [_round(ready, workload, number) for number in range(rounds + 1)]
    return found[1:]


@contextmanager
def _ready(workload: Workload, sides: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Side]]:
    ready = {}
    with ExitStack() as stack:
        for name, own in sides.items():
            config = make_config({"regime": {"epochs": 10_000}, **workload.values, **own})
            prepared = prepare(config, model=workload.build, dataset=workload.dataset)
            job = make_job(prepared, run="bench", model=workload.build, dataset=workload.dataset)
            group = stack.enter_context(placed([{"CPU": 1.0}] * (workload.workers + 1), strategy="PACK", note=print))
            ready[name] = Side(
                prepared=prepared, job=job, people=stack.enter_context(crew(job, group, jemalloc=jemalloc_here()))
            )
        yield ready


def _round(ready: Mapping[str, Side], workload: Workload, number: int) -> Round:
    order = list(ready) if number % 2 else list(ready)[::-1]
    turns = {name: _turn(ready[name], workload) for name in order}
    return {name: turns[name] for name in ready}


def _turn(side: Side, workload: Workload) -> Turn:
    monitor = _Timed(side.prepared)
    with monitor:
        course = AllAtOnce(lambda _: training_items(side.prepared, WARM_UP + workload.microbatches))
        driver.carry_out(side.job, side.people, course, monitor, note=print)
    return monitor.turn()


def median(rounds: Sequence[Round], side: str, key: str = "samples_per_s") -> float:
    """Of a side, over all rounds."""
    return statistics.median(getattr(each[side], key) for each in rounds)


def ratios(rounds: Sequence[Round], over: str, under: str, key: str = "samples_per_s") -> list[float]:
    """Of one side over another, within a round."""
    return [getattr(each[over], key) / getattr(each[under], key) for each in rounds]


def figures(turns: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """All of them, by workload, as JSON holds them."""
    return {
        name: [{side: asdict(turn) for side, turn in each.items()} for each in rounds] for name, rounds in turns.items()
    }
