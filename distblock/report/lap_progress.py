"""What a person sees while stages train one by one: a bar over all of their epochs, and a line for each evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich import progress as bars
from rich.console import Console

from distblock.messages import WorkerReport
from distblock.metrics.accounting import Account, StageRow


class LapProgress:
    """Shows a run's progress from entering the block to leaving it.

    Args:
        console: where to.
        laps: sweeps over the stages.
        lap_epochs: epochs of each stage in one lap.
        samples_per_epoch: training samples an epoch.
        clock: seconds from an arbitrary point.
    """

    def __init__(
        self,
        console: Console,
        *,
        laps: int,
        lap_epochs: Sequence[int],
        samples_per_epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._laps = laps
        self._lap_epochs = lap_epochs
        self._clock = clock
        self._samples = 0
        self._before = 0
        self._begun_s: float | None = None
        shows_bar = console.is_terminal and not console.is_dumb_terminal
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("ETA"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not shows_bar,
            get_time=clock,
        )
        self._task = self._bar.add_task("", total=laps * sum(lap_epochs) * samples_per_epoch)

    def __enter__(self) -> LapProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def go_on(self, account: Account) -> None:
        """The run goes on from these sums."""
        self._samples = sum(row.num_samples for row in account.rows())
        self._begun_s = None
        self._before = self._samples

    def record(self, report: WorkerReport) -> None:
        """Count a worker's report."""
        if self._begun_s is None:
            self._begun_s = self._clock()
        trained = [stage for stage in report.stages if stage.role == "train"]
        if trained:
            self._samples += report.item.num_samples
            self._bar.update(
                self._task,
                completed=self._samples,
                description=f"lap {report.item.lap + 1}/{self._laps} stage {trained[0].stage}",
            )

    def epoch_done(self, epoch: int, rows: Sequence[StageRow]) -> None:
        """A stage has been evaluated: print its line.

        Args:
            epoch: of the stage, over all laps, counted from 0.
            rows: the stage's row of that epoch.
        """
        for row in rows:
            epochs = self._lap_epochs[row.stage]
            in_lap = epoch - row.lap * epochs + 1
            loss = "" if row.train_loss is None else f"   train loss {row.train_loss:.2f}"
            accuracy = 100 * (row.validation_accuracy or 0)
            self.note(
                f"lap {row.lap + 1}/{self._laps}  stage {row.stage}  epoch {in_lap:{len(str(epochs))}d}/{epochs}"
                f"  validation accuracy {accuracy:.1f} %{loss}{self._rate()}"
            )

    def note(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _rate(self) -> str:
        seconds = 0.0 if self._begun_s is None else self._clock() - self._begun_s
        return f"   {(self._samples - self._before) / seconds:,.0f} samples/s" if seconds > 0 else ""
