"""Oracle: lines written out by hand, under a clock that the test moves."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from report.reports import report
from rich.console import Console

from distblock.metrics.accounting import StageRow
from distblock.report.progress import Progress, epoch_line, listed_stages


class Clock:
    """Seconds that stand still until they are moved."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def row(stage: int, *, epoch: int = 2, accuracy: float | None = 0.9, loss: float | None = 0.5) -> StageRow:
    return StageRow(
        stage=stage,
        lap=0,
        epoch=epoch,
        train_loss=loss,
        train_accuracy=None,
        train_transport_cost=None,
        validation_loss=None,
        validation_accuracy=accuracy,
        validation_transport_cost=None,
        test_loss=None,
        test_accuracy=None,
        test_transport_cost=None,
        num_samples=0,
        compute_s=0.0,
        idle_s=0.0,
        lr=None,
        multiplier=None,
    )


def test_the_line_of_an_epoch():
    rows = [row(0, accuracy=0.8123, loss=0.414), row(1, accuracy=0.92, loss=0.22), row(2, accuracy=0.951, loss=0.11)]
    line = "epoch  3/20  validation accuracy by stage  81.2 92.0 95.1 %   train loss 0.41 0.22 0.11   812 samples/s"
    assert epoch_line(rows, epochs=20, samples_per_s=812.4) == line


def test_of_many_stages_the_first_the_best_and_the_last_are_listed():
    rows = [row(stage, epoch=299, accuracy=0.99 if stage == 35 else 0.5, loss=stage / 10) for stage in range(54)]
    line = epoch_line(rows, epochs=300, samples_per_s=123_456.0)
    assert line == (
        "epoch 300/300  validation accuracy, stages 0 35 53:  50.0 99.0 50.0 %"
        "   train loss 0.00 3.50 5.30   123,456 samples/s"
    )
    assert len(line) <= 120


@pytest.mark.parametrize("num_stages", range(1, 60))
def test_no_line_is_longer_than_120_columns(num_stages):
    rows = [row(stage, epoch=998, accuracy=0.1 + stage / 100, loss=2.3) for stage in range(num_stages)]
    assert len(epoch_line(rows, epochs=999, samples_per_s=99_999.0)) <= 120


def test_listed_stages_where_the_best_is_at_an_end_or_unknown():
    assert listed_stages([0.1, 0.2, None, 0.3], best=max) == [0, 1, 2, 3]
    assert listed_stages([0.9, 0.2, None, 0.3, 0.4], best=max) == [0, 4]
    assert listed_stages([None] * 6, best=max) == [0, 5]
    assert listed_stages([0.5, 0.5, 0.1, 0.5, 0.5], best=min) == [0, 2, 4]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file() -> StringIO:
    return StringIO()


def plain(file: StringIO, clock: Clock, *, num_stages: int = 2) -> Progress:
    """Two epochs of 1,000 samples, into a log."""
    console = Console(file=file, width=40)  # narrower than a line: lines of a log are never broken
    return Progress(console, num_stages=num_stages, epochs=2, samples_per_epoch=1_000, clock=clock)


def test_a_log_gets_at_most_a_line_in_ten_seconds(file, clock):
    with plain(file, clock) as progress:
        for number in range(10):  # 20 microbatches an epoch; one every 2.5 s; stage 1 is as far as stage 0
            progress.record(report(number, stages=range(1), loss=2.0))
            progress.record(report(number, stages=range(1, 2), loss=1.0))
            clock.now_s += 2.5
    # After 10 s stage 0 has told five times and stage 1 four times: 200 of 1,000 samples are through both.
    assert file.getvalue().splitlines() == [
        "epoch 1/2   20 %   train loss by stage  2.00 1.00   20 samples/s",
        "epoch 1/2   40 %   train loss by stage  2.00 1.00   20 samples/s",
    ]


def test_an_evaluated_epoch_gets_its_line_at_once(file, clock):
    with plain(file, clock) as progress:
        progress.record(report(0, stages=range(2)))
        for number in range(1, 20):
            clock.now_s += 0.1
            progress.record(report(number, stages=range(2)))
        clock.now_s += 0.1
        progress.record(report(20, stages=range(2), purpose="evaluate"))
        rows = [row(stage, epoch=epoch, accuracy=(epoch + 8) / 10) for epoch in (0, 1) for stage in (1, 0)]
        progress.epoch_done(0, rows)
        progress.note("a word with [brackets]")
    # 950 samples since the first report, in 2 seconds.
    assert file.getvalue().splitlines() == [
        "epoch 1/2  validation accuracy by stage  80.0 80.0 %   train loss 0.50 0.50   475 samples/s",
        "a word with [brackets]",
    ]


def test_the_running_loss_begins_anew_with_each_epoch(file, clock):
    with plain(file, clock, num_stages=1) as progress:
        progress.record(report(0, stages=range(1), loss=5.0))
        progress.record(report(20, stages=range(1), loss=1.0, epoch=1))
        clock.now_s += 20
        progress.record(report(21, stages=range(1), loss=2.0, epoch=1))
    assert file.getvalue() == "epoch 2/2   10 %   train loss by stage  1.50   5 samples/s\n"


def test_a_terminal_shows_a_line_for_each_stage(file, clock):
    console = Console(file=file, width=100, height=40, force_terminal=True, color_system=None, _environ={})
    with Progress(console, num_stages=54, epochs=2, samples_per_epoch=1_000, clock=clock) as progress:
        progress.record(report(0, stages=range(54), loss=1.234))
        clock.now_s += 2
        progress.record(report(1, stages=range(54), loss=1.234))
        progress.epoch_done(0, [row(stage, epoch=0, accuracy=0.777) for stage in range(54)])
        progress.record(report(2, stages=range(54), loss=1.234))
    shown = re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "", file.getvalue()).splitlines()
    assert any("validation accuracy, stages 0 53:  77.7 77.7 %" in line for line in shown)
    last = shown[max(number for number, line in enumerate(shown) if "epoch 1/2" in line) :]
    assert "8%" in last[0]  # 150 of 2,000 samples
    stages = [line.split() for line in last[2:14]]
    assert [line[0] for line in stages] == ["0", "5", "10", "14", "19", "24", "29", "34", "39", "43", "48", "53"]
    assert stages[0][1:] == ["1", "1.234", "50.0", "%", "77.7", "%"]
