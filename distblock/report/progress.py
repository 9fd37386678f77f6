"""What a person sees while a run lasts.

On a terminal a live display, drawn by a thread of its own from sums that recording keeps; elsewhere lines for a log,
seldom enough to be read. Both print a line for each evaluated epoch. Stages run ahead of one another, and a sample
counts as done when the last of them is done with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from rich import progress as bars
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from distblock.messages import WorkerReport
from distblock.metrics.accounting import Account, PassSums, StageRow
from distblock.report.tables import MISSING, decimal, percent

LOG_INTERVAL_S = 10.0
"""Least seconds between two lines within an epoch, where there is no terminal."""

MAX_LISTED = 4
"""Stages that fit into a line; of more, the first, the best and the last are listed."""

MAX_LINES = 12
"""Stages that get a line in the live display; of more, so many are spread over the depth."""


class Progress:
    """Shows a run's progress from entering the block to leaving it.

    Args:
        console: where to; decides between display and log.
        num_stages: stages of the run.
        epochs: epochs of the run.
        samples_per_epoch: training samples an epoch.
        clock: seconds from an arbitrary point.
    """

    def __init__(
        self,
        console: Console,
        *,
        num_stages: int,
        epochs: int,
        samples_per_epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._epochs = epochs
        self._samples_per_epoch = samples_per_epoch
        self._clock = clock
        self._epoch = [0] * num_stages
        self._passes = [PassSums() for _ in range(num_stages)]
        self._validation: list[float | None] = [None] * num_stages
        self._samples = 0
        self._mark: tuple[float, int] | None = None
        self._logged_s = clock()
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TextColumn("ETA"),
            bars.TimeRemainingColumn(),
            console=console,
            get_time=clock,
        )
        self._task = self._bar.add_task("", total=epochs * samples_per_epoch, rate="")
        shows_display = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, get_renderable=self._render, transient=True) if shows_display else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def go_on(self, account: Account) -> None:
        """The run goes on from these sums."""
        last = len(self._passes) - 1
        self._samples = sum(row.num_samples for row in account.rows() if row.stage == last)
        self._mark = None

    def record(self, report: WorkerReport) -> None:
        """Count a worker's report; without a terminal, sometimes print a line."""
        item = report.item
        if item.purpose == "train":
            for stage in report.stages:
                index = stage.stage
                if item.epoch != self._epoch[index]:
                    self._epoch[index], self._passes[index] = item.epoch, PassSums()
                self._passes[index].add(stage, item.index)
            if report.stages[-1].stage == len(self._passes) - 1:
                self._samples += item.num_samples
        now_s = self._clock()
        if self._mark is None:
            self._mark = now_s, self._samples
        if self._live is None and item.purpose == "train" and now_s - self._logged_s >= LOG_INTERVAL_S:
            self._logged_s = now_s
            self.note(self._running_line())

    def epoch_done(self, epoch: int, rows: Sequence[StageRow]) -> None:
        """All stages have evaluated an epoch: print its line.

        Args:
            epoch: which, counted from 0.
            rows: a row per stage and epoch; those of other epochs are ignored.
        """
        rows = sorted((row for row in rows if row.epoch == epoch), key=lambda row: row.stage)
        self._validation = [row.validation_accuracy for row in rows]
        self.note(epoch_line(rows, epochs=self._epochs, samples_per_s=self._rate()))
        self._logged_s = self._clock()
        self._mark = self._logged_s, self._samples

    def note(self, text: str) -> None:
        """Print a line, above the display where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _rate(self) -> float | None:
        """Samples a second since the last evaluated epoch; None while there is nothing to divide by."""
        if self._mark is None:
            return None
        since_s, samples = self._mark
        seconds = self._clock() - since_s
        return (self._samples - samples) / seconds if seconds > 0 else None

    def _running_line(self) -> str:
        """The last stage's place in its epoch, and the running losses."""
        done, epoch = self._passes[-1].num_samples, self._epoch[-1]
        losses = [_loss(sums) for sums in self._passes]
        listed = listed_stages(losses, best=min)
        parts = [
            f"{_epoch_of(epoch, self._epochs)}  {100 * done // self._samples_per_epoch:3d} %",
            f"train loss{_which(listed, len(losses))}  {_joined(losses, listed, _loss_text)}",
            _rate_text(self._rate()),
        ]
        return "   ".join(part for part in parts if part)

    def _render(self) -> RenderableType:
        description = _epoch_of(self._epoch[-1], self._epochs)
        self._bar.update(self._task, completed=self._samples, description=description, rate=_rate_text(self._rate()))
        table = Table("stage", "epoch", "train loss", "train accuracy", "validation accuracy", box=None)
        for column in table.columns:
            column.justify = "right"
        for stage in _spread(len(self._passes), MAX_LINES):
            sums = self._passes[stage]
            accuracy = sums.accuracy if sums.num_samples else None
            table.add_row(
                str(stage),
                str(self._epoch[stage] + 1),
                decimal(_loss(sums)),
                percent(accuracy),
                percent(self._validation[stage]),
            )
        return Group(self._bar, table)


def epoch_line(rows: Sequence[StageRow], *, epochs: int, samples_per_s: float | None) -> str:
    """The line of an evaluated epoch; under 120 columns however many stages there are.

    Args:
        rows: one row a stage, in order, all of one epoch.
        epochs: epochs of the run.
        samples_per_s: left out if None.
    """
    accuracies = [row.validation_accuracy for row in rows]
    listed = listed_stages(accuracies, best=max)
    parts = [
        f"{_epoch_of(rows[0].epoch, epochs)}"
        f"  validation accuracy{_which(listed, len(rows))}  {_joined(accuracies, listed, _percent_text)} %",
        f"train loss {_joined([row.train_loss for row in rows], listed, _loss_text)}",
        _rate_text(samples_per_s),
    ]
    return "   ".join(part for part in parts if part)


def listed_stages(
    values: Sequence[float | None], *, best: Callable[[list[tuple[float, int]]], tuple[float, int]]
) -> list[int]:
    """Which stages a line lists: all if they are few, else the first, the best (``min`` or ``max``) and the last."""
    last = len(values) - 1
    if last < MAX_LISTED:
        return list(range(last + 1))
    known = [(value, stage) for stage, value in enumerate(values) if value is not None]
    return sorted({0, best(known)[1] if known else last, last})


def _which(listed: list[int], num_stages: int) -> str:
    if len(listed) == num_stages:
        return " by stage"
    return f", stages {' '.join(map(str, listed))}:"


def _joined(values: Sequence[float | None], listed: list[int], text: Callable[[float], str]) -> str:
    return " ".join(MISSING if (value := values[stage]) is None else text(value) for stage in listed)


def _percent_text(ratio: float) -> str:
    return f"{100 * ratio:.1f}"


def _loss_text(loss: float) -> str:
    return f"{loss:.2f}"


def _rate_text(samples_per_s: float | None) -> str:
    return "" if samples_per_s is None else f"{samples_per_s:,.0f} samples/s"


def _epoch_of(epoch: int, epochs: int) -> str:
    return f"epoch {epoch + 1:{len(str(epochs))}d}/{epochs}"


def _loss(sums: PassSums) -> float | None:
    return sums.loss if sums.num_samples else None


def _spread(num_stages: int, num_lines: int) -> list[int]:
    """Stages evenly over the depth, the first and the last among them."""
    if num_stages <= num_lines:
        return list(range(num_stages))
    return [math.floor(line * (num_stages - 1) / (num_lines - 1) + 0.5) for line in range(num_lines)]
