"""Everything that listens to a run: sums, log, exporter and progress, behind one `Observer`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import pyarrow as pa
from rich.console import Console

from distblock.config import Config
from distblock.learning.blueprint import Blueprint
from distblock.messages import DataReport, Departure, Failure, Handling, Item, Line, Standing, WorkerReport
from distblock.metrics.accounting import Account
from distblock.metrics.exporter import Exporter
from distblock.metrics.figures import stage_figures
from distblock.metrics.log import HopsLog, metrics_table
from distblock.metrics.settling import Settling
from distblock.metrics.timeline import Timeline
from distblock.report import recent
from distblock.report.calibration import ONE_STREAM
from distblock.report.lap_progress import LapProgress
from distblock.report.progress import Progress
from distblock.schedule.position import Position
from distblock.schedule.stopping import Patience
from distblock.schedule.stream import StreamPlan

OnEvaluation = Callable[[int, float], None]
"""Called with a stage and its validation accuracy."""

OnFigures = Callable[[Mapping[str, float]], None]
"""Called with a stage's figures."""


@dataclass(frozen=True, kw_only=True)
class Fork:
    """What has been recorded up to a position.

    Attributes:
        account: sums of what lies within it.
        hops: the log up to there.
        elapsed_s: seconds of the run.
    """

    account: Account
    hops: HopsLog
    elapsed_s: float


STANDING_S = 2.0
"""Seconds between two looks at what workers are at, that are kept."""

RECENT_S = 10.0
"""The same for the record of what has just happened."""


class Monitor:
    """An `Observer` that hands on to all that want to know; a context manager.

    Attributes:
        account: the run's sums so far.
        wall_s: seconds from the beginning to the last report so far.
        lines: what edges between two hosts lie on now.

    Args:
        config: the run's settings.
        run: its name.
        blueprint: its network.
        plan: its stream.
        patience: is told the validation accuracies.
        console: where progress goes.
        on_evaluation: is called with a stage and its validation accuracy, after each evaluation.
        on_figures: are called likewise with all its figures, see `distblock.metrics.figures.stage_figures`.
        keep_standing: is called every few seconds with what each worker is at, as ``status.json`` has it.
        keep_recent: likewise with what has just happened, see `distblock.report.recent`.

    Raises:
        InputError: the exporter's port is taken.
    """

    def __init__(
        self,
        config: Config,
        *,
        run: str,
        blueprint: Blueprint,
        plan: StreamPlan,
        patience: Patience,
        console: Console,
        on_evaluation: OnEvaluation | None = None,
        on_figures: Sequence[OnFigures] = (),
        keep_standing: Callable[[Mapping[str, Any]], None] | None = None,
        keep_recent: Callable[[bytes], None] | None = None,
    ) -> None:
        self._config = config
        self._on_evaluation = on_evaluation
        self._on_figures = on_figures
        self._keep_standing, self._kept_s = keep_standing, float("-inf")
        self._keep_recent, self._recent_s = keep_recent, float("-inf")
        self._patience = patience
        self.account = Account(num_stages=blueprint.num_stages)
        self._num_validation = plan.num_validation
        self._last_stage = blueprint.num_stages - 1
        self._stages = blueprint.partition.stages
        # Elsewhere nobody could make a verdict of it.
        self._judges = config.metrics.record and config.regime.name in ONE_STREAM
        self._num_recent = recent.num_rows(1 + len(blueprint.hosts) * config.workers_per_stage)
        self._begun_s: float | None = None
        self._before_s = 0.0
        self.wall_s = 0.0
        self.lines: tuple[Line, ...] = ()
        self.memcpy_bytes_per_s: float | None = None
        self.driver_microbatches, self.driver_busy_s = 0, 0.0
        self._is_recording = config.metrics.record
        self._interval_s = config.metrics.interval_s
        self._hops = HopsLog(interval_s=self._interval_s)
        self._timeline = Timeline()
        self._drops = config.regime.name == "asynchronous"
        self._replicas = config.workers_per_stage
        self._settling = self._new_settling(Account(num_stages=blueprint.num_stages))
        self._forked: tuple[HopsLog, float] | None = None
        self._recovering: tuple[Failure, float] | None = None
        self._progress = _progress(config, blueprint, plan, console)
        self._exporter = None
        if config.metrics.port is not None:
            self._exporter = Exporter(run=run, host=config.metrics.host, port=config.metrics.port, account=self.account)
            self.note(f"metrics: http://{config.metrics.host}:{self._exporter.port}/metrics")

    def begin(self) -> None:
        """The workers are ready and the first microbatch is on its way: time counts from here."""
        self._begun_s = self._begun_s or time.monotonic()

    @property
    def has_begun(self) -> bool:
        """Whether the workers are ready."""
        return self._begun_s is not None

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run has taken, earlier attempts included; 0 before its beginning."""
        return self._before_s + (0.0 if self._begun_s is None else time.monotonic() - self._begun_s)

    def restore(self, account: Account, hops: pa.Table, *, elapsed_s: float) -> None:
        """Go on from what had been recorded at a checkpoint.

        Args:
            account: the sums.
            hops: rows of hops.parquet.
            elapsed_s: seconds that the run had taken; a run that is under way has lost some, which count.
        """
        self.account = account
        self._hops = HopsLog(interval_s=self._interval_s, before=hops, account=account)
        self._settling = self._new_settling(Account.from_json(account.to_json()))
        self._forked = None
        if self._begun_s is None:
            self._before_s = elapsed_s
        self.wall_s = self.elapsed_s
        if self._exporter is not None:
            self._exporter.follow(account)
        self._progress.go_on(account)
        for row in account.rows():
            sums = account.stage_pass(row.stage, row.epoch, "validation")
            if sums is not None and sums.num_samples >= self._num_validation:
                self._patience.tell(row.stage, row.lap, row.epoch, sums.accuracy)

    def _new_settling(self, account: Account) -> Settling:
        return Settling(account, drops=self._drops, replicas=self._replicas)

    def fork(self, position: Position) -> None:
        """From now on, what lies within a position is recorded apart, too."""
        self._settling.fork(position.includes)
        self._forked = self._hops.fork(), self.elapsed_s

    def take_fork(self) -> Fork:
        """What lies within it, now that all of it has been recorded."""
        assert self._forked is not None
        (hops, elapsed_s), self._forked = self._forked, None
        return Fork(account=self._settling.take_fork(), hops=hops, elapsed_s=elapsed_s)

    def expect_recovery(self, failure: Failure) -> None:
        """A failure will have been survived when the next microbatch is recorded; time counts from now."""
        self._recovering = failure, time.monotonic()

    def __enter__(self) -> Monitor:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._exporter is not None:
            self._exporter.close()

    def record(self, report: WorkerReport) -> None:
        """A worker is done with a microbatch."""
        if self._is_recording:
            self._hops.advance(self.elapsed_s, self._settling.account)
        self.account.record(report)
        self._settling.record(report)
        if self._recovering is not None:
            failure, since_s = self._recovering
            self._recovering = None
            self.record_failure(replace(failure, held_up_s=time.monotonic() - since_s))
        self.wall_s = self.elapsed_s
        self._progress.record(report)
        if report.item.purpose == "evaluate" and report.item.part == "validation":
            self._evaluated(report)

    def _evaluated(self, report: WorkerReport) -> None:
        """Stages have evaluated a microbatch of the validation part: perhaps the last one that was missing.

        A worker's reports may overtake each other on their way, so samples are counted.
        """
        item = report.item
        for stage in report.stages:
            sums = self.account.stage_pass(stage.stage, item.epoch, "validation")
            if stage.role != "evaluate" or sums is None or sums.num_samples < self._num_validation:
                continue
            self._patience.tell(stage.stage, item.lap, item.epoch, sums.accuracy)
            if self._on_evaluation is not None:
                self._on_evaluation(stage.stage, sums.accuracy)
            if self._on_figures:
                figures = stage_figures(self.account, stage=stage.stage, epoch=item.epoch)
                for tell in self._on_figures:
                    tell(figures)
            if stage.stage == (self._last_stage if item.stage is None else item.stage):
                rows = [row for row in self.account.rows() if row.epoch == item.epoch]
                self._progress.epoch_done(item.epoch, [row for row in rows if item.stage in (None, row.stage)])

    def record_departure(self, departure: Departure, node: str, item: Item) -> None:
        """A microbatch of data is ready."""
        self._hops.advance(self.elapsed_s, self._settling.account)
        self.account.record_departure(departure, node)
        self._settling.record_departure(departure, node, item)

    def record_passage(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        """When a microbatch was where."""
        self._timeline.record(report, handling)

    def record_backpressure(self, edge: int, seconds: float) -> None:
        """A sender stood idle for want of a credit."""
        if not self._is_recording:
            return
        self._hops.advance(self.elapsed_s, self._settling.account)
        for account in (self.account, self._settling.account):
            account.record_backpressure(edge, seconds)

    def record_drop(self, edge: int) -> None:
        """A microbatch was dropped, since its receiver was too slow."""
        for account in (self.account, self._settling.account):
            account.record_drop(edge)

    def record_driver(self, busy_s: float, num_microbatches: int) -> None:
        """The driver has worked for so long on the end of a call, and waits for that of another."""
        self.driver_microbatches += num_microbatches
        self.driver_busy_s += busy_s
        if self._exporter is not None:
            self._exporter.record_driver(busy_s)

    def record_standing(self, standings: Sequence[Standing]) -> None:
        """What each worker is at: kept where somebody can look, every few seconds."""
        if time.monotonic() - self._kept_s < STANDING_S:
            return
        self._kept_s = time.monotonic()
        status = {"written_s": time.time(), "workers": [asdict(standing) for standing in standings]}
        if self._keep_standing is not None:
            self._keep_standing(status)
        if self._exporter is not None:
            self._exporter.set_standing(status)
        if self._judges and time.monotonic() - self._recent_s >= RECENT_S:
            self._recent_s = time.monotonic()
            self._tell_recent()

    def _tell_recent(self) -> None:
        """So that whoever asks can be told what holds the run back."""
        if self._keep_recent is None and self._exporter is None:
            return
        rates = {line.edge: line.rate_bytes_per_s for line in self.lines}
        edges = [{"line_rate_bytes_per_s": rates.get(stage)} for stage in range(self._last_stage + 1)]
        figures = {
            "driver_busy_s": self.driver_busy_s,
            "driver_microbatches": self.driver_microbatches,
            "stages": [
                {"compute_s": each.compute_s, "blocks": list(blocks)}
                for each, blocks in zip(self.account.totals(), self._stages, strict=True)
            ],
            "data_edge": edges[0],
            "edges": edges[1:],
        }
        content = recent.pack(self._timeline.table(last=self._num_recent), self._config, figures)
        if self._keep_recent is not None:
            self._keep_recent(content)
        if self._exporter is not None:
            self._exporter.set_recent(content)

    def set_in_flight(self, edge: int, count: int, num_bytes: int) -> None:
        """What is in flight on an edge now."""
        if self._exporter is not None:
            self._exporter.set_in_flight(edge, count, num_bytes)

    def set_lines(self, lines: Sequence[Line]) -> None:
        """What edges between two hosts lie on, of the workers that are about to start."""
        self.lines = tuple(lines)
        if self._exporter is not None:
            self._exporter.set_lines(lines)

    def set_memcpy(self, bytes_per_s: float | None) -> None:
        """What copying in memory makes on the slowest host of the workers."""
        self.memcpy_bytes_per_s = bytes_per_s

    def record_failure(self, failure: Failure) -> None:
        """A failure has been survived."""
        self.keep_failure(failure)
        if self._exporter is not None:
            self._exporter.record_failure(failure)

    def keep_failure(self, failure: Failure) -> None:
        """A failure that had been survived before the run went back."""
        for account in (self.account, self._settling.account):
            account.record_failure(failure)

    def note(self, text: str) -> None:
        """A word to whoever watches."""
        self._progress.note(text)

    def metrics_table(self) -> pa.Table:
        """A row per stage, lap and epoch."""
        return metrics_table(self.account.rows())

    def hops_table(self) -> pa.Table:
        """A row per edge and reporting interval."""
        return self._hops.table(self._settling.account)

    def timeline_table(self) -> pa.Table:
        """A row per microbatch and worker, of this process's part of the run."""
        return self._timeline.table()


def _progress(config: Config, blueprint: Blueprint, plan: StreamPlan, console: Console) -> Progress | LapProgress:
    regime = config.regime
    if not regime.one_by_one:
        return Progress(console, num_stages=blueprint.num_stages, epochs=plan.epochs, samples_per_epoch=plan.num_train)
    lap_epochs = [regime.lap_epochs(stage) for stage in range(blueprint.num_stages)]
    return LapProgress(console, laps=regime.laps, lap_epochs=lap_epochs, samples_per_epoch=plan.num_train)
