"""Sums of a run so far, per stage and per edge.

Workers report microbatch by microbatch, one ahead of the other, and a hop is told in two halves by two of them. Means
of means would depend on how samples were cut into microbatches; so only sums are kept here, and every mean is formed
from them when it is asked for. Nothing reads a clock.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from distblock.messages import Departure, Failure, Item, Part, StageReport, WorkerReport
from distblock.metrics.histogram import Histogram
from distblock.metrics.hops import EdgeSums, HopSums, SizeClass
from distblock.metrics.staleness import Staleness, StalenessSums


@dataclass(kw_only=True, slots=True)
class PassSums:
    """One stage's pass over one part of the data, finished or running.

    Attributes:
        loss_sum, transport_cost_sum, num_correct, num_samples: as in `StageReport`, summed over microbatches.
        compute_s: seconds the stage computed.
        idle_s: seconds the worker idled; a worker's idling counts for its first stage.
        lr: learning rate of the last step; None in evaluation.
        multiplier: lambda of the last step, where the multiplier tunes itself; else None.
        num_microbatches: how many of them.
        lap: the lap it belongs to.
        last: the microbatch that lr and multiplier are of, by its place in the pass: reports may overtake each other.
    """

    loss_sum: float = 0.0
    transport_cost_sum: float = 0.0
    num_correct: int = 0
    num_samples: int = 0
    compute_s: float = 0.0
    idle_s: float = 0.0
    lr: float | None = None
    multiplier: float | None = None
    num_microbatches: int = 0
    lap: int = 0
    last: int = -1

    def add(self, report: StageReport, index: int) -> None:
        """Count one microbatch, by its place in the pass."""
        self.num_microbatches += 1
        self.loss_sum += report.loss_sum
        self.transport_cost_sum += report.transport_cost_sum
        self.num_correct += report.num_correct
        self.num_samples += report.num_samples
        self.compute_s += report.compute_s
        if index >= self.last:
            self.last, self.lr, self.multiplier = index, report.lr, report.multiplier

    @property
    def loss(self) -> float:
        """Mean cross-entropy over samples."""
        return self.loss_sum / self.num_samples

    @property
    def accuracy(self) -> float:
        """Share of samples classified right, 0 to 1."""
        return self.num_correct / self.num_samples

    @property
    def transport_cost(self) -> float:
        """Mean transport cost over samples."""
        return self.transport_cost_sum / self.num_samples


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One stage in one epoch; figures of a part that was not evaluated are None.

    Attributes:
        stage, lap, epoch: whose row it is, each counted from 0, epochs over all laps; lap is 0 where all train at once.
        train_loss, ..., test_transport_cost: means over the part's samples; accuracies from 0 to 1.
        num_samples: samples trained on in this epoch.
        compute_s, idle_s: seconds of the epoch's training and evaluation; a worker's idling counts for its first stage.
        lr: learning rate of the epoch's last step.
        multiplier: lambda of the epoch's last step, where the multiplier tunes itself.
    """

    stage: int
    lap: int
    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    train_transport_cost: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    validation_transport_cost: float | None
    test_loss: float | None
    test_accuracy: float | None
    test_transport_cost: float | None
    num_samples: int
    compute_s: float
    idle_s: float
    lr: float | None
    multiplier: float | None


@dataclass(kw_only=True, slots=True)
class ServedSums:
    """What a stage did for others: it ran forward only, or stood by."""

    compute_s: float = 0.0
    idle_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTotals:
    """One stage over the whole run so far.

    Attributes:
        num_samples: samples trained on, all epochs together.
        compute_s, idle_s: seconds of training and evaluation; a worker's idling counts for its first stage.
        peak_memory_bytes: largest so far of the worker that hosts the stage.
    """

    num_samples: int
    compute_s: float
    idle_s: float
    peak_memory_bytes: int


class Account:
    """All sums of a run so far.

    Args:
        num_stages: stages of the run; edges are one fewer, and the one from the data.

    Attributes:
        lock: held while something is counted; whoever reads from another thread holds it, too.
        failures: that have been survived.
    """

    def __init__(self, *, num_stages: int) -> None:
        self.lock = threading.Lock()
        self._passes: dict[tuple[int, int, Part], PassSums] = {}
        self._served = [ServedSums() for _ in range(num_stages)]
        self._hops = HopSums(num_stages)
        self._staleness = Staleness(num_stages)
        self._reuses = [0] * num_stages
        self._drops = [0] * num_stages
        self._peak_memory_bytes = [0] * num_stages
        self.failures: list[Failure] = []

    @property
    def num_stages(self) -> int:
        """Stages of the run."""
        return len(self._served)

    def begin(self) -> None:
        """Nothing is counted yet."""

    def record(self, report: WorkerReport) -> None:
        """Count what a worker tells about one microbatch. Each worker's reports come in stream order, and once."""
        with self.lock:
            self._record_stages(report)
            self._hops.record(report)
            self._staleness.record(report)

    def _record_stages(self, report: WorkerReport) -> None:
        item = report.item
        for stage in report.stages:
            if stage.role == "forward":
                self._served[stage.stage].compute_s += stage.compute_s
            else:
                sums = self._passes.setdefault((stage.stage, item.epoch, item.part), PassSums(lap=item.lap))
                sums.add(stage, item.index)
            peak = max(self._peak_memory_bytes[stage.stage], report.peak_memory_bytes)
            self._peak_memory_bytes[stage.stage] = peak
        first = report.stages[0]
        if first.role == "forward":
            self._served[first.stage].idle_s += report.idle_s
        else:
            self._passes[first.stage, item.epoch, item.part].idle_s += report.idle_s
        self._served[first.stage].compute_s += report.reuse_s
        for stage in report.stages:
            self._reuses[stage.stage] += len(report.reused)

    def record_drop(self, edge: int) -> None:
        """Count a microbatch that was dropped before the stage that an edge enters."""
        with self.lock:
            self._drops[edge] += 1
            self._hops.record_drop(edge)

    def record_departure(self, departure: Departure, node: str, item: Item | None = None) -> None:  # noqa: ARG002
        """Count the sender's side of a hop that no worker report holds: one from the data to stage 0."""
        with self.lock:
            self._hops.record_departure(departure, node)

    def record_backpressure(self, edge: int, seconds: float) -> None:
        """Count seconds in which the sender of an edge stood idle for want of a credit."""
        with self.lock:
            self._hops.record_backpressure(edge, seconds)

    def record_failure(self, failure: Failure) -> None:
        """Note a failure that has been survived."""
        self.failures.append(failure)

    def to_json(self) -> dict[str, Any]:
        """All sums, as numbers and lists."""
        return {
            "passes": [[*key, _values(sums)] for key, sums in self._passes.items()],
            "served": [_values(sums) for sums in self._served],
            "hops": self._hops.to_json(),
            "staleness": self._staleness.to_json(),
            "reuses": list(self._reuses),
            "drops": list(self._drops),
            "peak_memory_bytes": list(self._peak_memory_bytes),
            "failures": [asdict(failure) for failure in self.failures],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Account:
        """Back from there."""
        account = cls(num_stages=len(content["served"]))
        account._passes = {(stage, epoch, part): PassSums(**sums) for stage, epoch, part, sums in content["passes"]}
        account._served = [ServedSums(**sums) for sums in content["served"]]
        account._hops = HopSums.from_json(content["hops"])
        account._staleness = Staleness.from_json(content["staleness"])
        account._reuses = list(content["reuses"])
        account._drops = list(content["drops"])
        account._peak_memory_bytes = list(content["peak_memory_bytes"])
        account.failures = [Failure(**failure) for failure in content["failures"]]
        return account

    @property
    def samples_trained(self) -> int:
        """Samples that a stage has trained on, all epochs together: the mean over stages."""
        return round(sum(totals.num_samples for totals in self.totals()) / self.num_stages)

    @property
    def samples_passed(self) -> int:
        """Samples that the first stage has trained on or been evaluated with, all passes together."""
        return sum(sums.num_samples for (stage, _, _), sums in self._passes.items() if stage == 0)

    def stage_pass(self, stage: int, epoch: int, part: Part) -> PassSums | None:
        """A copy of the sums of a pass, finished or running; None if it has not begun."""
        sums = self._passes.get((stage, epoch, part))
        return sums and replace(sums)

    @property
    def passes(self) -> Mapping[tuple[int, int, Part], PassSums]:
        """Sums of all passes begun, by stage, epoch and part."""
        return self._passes

    def totals(self) -> list[StageTotals]:
        """Sums of each stage over all epochs."""
        samples = [0] * self.num_stages
        compute_s = [served.compute_s for served in self._served]
        idle_s = [served.idle_s for served in self._served]
        for (stage, _, part), sums in self._passes.items():
            samples[stage] += sums.num_samples if part == "train" else 0
            compute_s[stage] += sums.compute_s
            idle_s[stage] += sums.idle_s
        columns = zip(samples, compute_s, idle_s, self._peak_memory_bytes, strict=True)
        return [
            StageTotals(num_samples=count, compute_s=computed, idle_s=idle, peak_memory_bytes=peak)
            for count, computed, idle, peak in columns
        ]

    def rows(self) -> list[StageRow]:
        """A row per stage and epoch begun, by epoch, then by stage."""
        begun = sorted({(epoch, stage) for stage, epoch, _ in self._passes})
        return [self._row(stage, epoch) for epoch, stage in begun]

    def staleness(self, edge: int) -> StalenessSums:
        """How old what crossed an edge was when it was trained on."""
        return self._staleness.edges[edge]

    def drops(self, edge: int) -> int:
        """Microbatches that were dropped on an edge."""
        return self._drops[edge]

    def reuses(self, stage: int) -> int:
        """Microbatches that a stage trained on again."""
        return self._reuses[stage]

    def edges(self) -> list[EdgeSums]:
        """A copy of the sums of each edge, the edge from the data first."""
        return self._hops.copy()

    def durations(self) -> list[Histogram]:
        """A copy of what hops of each edge took, the edge from the data first."""
        found = []
        for edge in range(self.num_stages):
            found.append(Histogram())
            for size in self.sizes(edge):
                found[-1].merge(size.seconds)
        return found

    def sizes(self, edge: int) -> list[SizeClass]:
        """The hops of an edge by size, the smallest first."""
        return self._hops.sizes(edge)

    def _row(self, stage: int, epoch: int) -> StageRow:
        train, validation, test = (self.stage_pass(stage, epoch, part) for part in ("train", "validation", "test"))
        passes = [sums for sums in (train, validation, test) if sums]
        return StageRow(
            stage=stage,
            lap=passes[0].lap,
            epoch=epoch,
            train_loss=train and train.loss,
            train_accuracy=train and train.accuracy,
            train_transport_cost=train and train.transport_cost,
            validation_loss=validation and validation.loss,
            validation_accuracy=validation and validation.accuracy,
            validation_transport_cost=validation and validation.transport_cost,
            test_loss=test and test.loss,
            test_accuracy=test and test.accuracy,
            test_transport_cost=test and test.transport_cost,
            num_samples=train.num_samples if train else 0,
            compute_s=sum(sums.compute_s for sums in passes),
            idle_s=sum(sums.idle_s for sums in passes),
            lr=train and train.lr,
            multiplier=train and train.multiplier,
        )


def _values(sums: PassSums | ServedSums) -> dict[str, Any]:
    """A flat record as a dictionary; `dataclasses.asdict` takes ten times as long, and a run has thousands."""
    return {field.name: getattr(sums, field.name) for field in fields(sums)}
