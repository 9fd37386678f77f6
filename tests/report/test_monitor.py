"""What listens to a run follows it when it goes back."""

from __future__ import annotations

import re
import urllib.request
from io import StringIO

from rich.console import Console

from distblock.config import make_config
from distblock.messages import Item, StageReport, WorkerReport
from distblock.metrics.accounting import Account
from distblock.preparation import prepare
from distblock.report.monitor import Monitor
from distblock.schedule.stopping import Patience


def report(number: int) -> WorkerReport:
    """Worker 0 has trained on 64 samples."""
    stage = StageReport(
        stage=0,
        role="train",
        loss_sum=64.0,
        transport_cost_sum=0.0,
        num_correct=32,
        num_samples=64,
        compute_s=0.5,
        lr=0.1,
    )
    return WorkerReport(
        worker=0,
        item=Item.of_batch(number, 64),
        stages=(stage,),
        arrivals=(),
        departures=(),
        started_s=0.0,
        finished_s=0.5,
        idle_s=0.25,
        peak_memory_bytes=1_000,
        node="10.0.0.1",
    )


def test_the_exporter_goes_on_with_the_run_that_has_gone_back():
    prepared = prepare(make_config({"executor": "local", "metrics": {"port": 0}}))
    console = Console(file=StringIO(), width=120)
    monitor = Monitor(
        prepared.config,
        run="a-run",
        blueprint=prepared.blueprint,
        plan=prepared.plan,
        patience=Patience(None),
        console=console,
    )
    assert isinstance(console.file, StringIO)
    told = re.search(r"http://\S+/metrics", console.file.getvalue())
    assert told is not None

    def trained() -> float:
        with urllib.request.urlopen(told[0], timeout=10) as response:
            text = response.read().decode()
        found = re.search(r'^distblock_samples_total\{.*purpose="train".*stage="0".*\} (\S+)$', text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])

    with monitor:
        monitor.begin()
        monitor.record(report(0))
        checkpoint = Account.from_json(monitor.account.to_json())
        hops = monitor.hops_table()
        monitor.record(report(1))
        assert trained() == 128
        monitor.restore(checkpoint, hops, elapsed_s=0.0)
        assert trained() == 128
        monitor.record(report(1))
        assert trained() == 192
