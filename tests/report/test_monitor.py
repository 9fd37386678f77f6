"""What listens to a run follows it when it goes back."""

from __future__ import annotations

import re
import urllib.request
from io import StringIO

from report.reports import report
from rich.console import Console

from distblock.config import make_config
from distblock.metrics.accounting import Account
from distblock.preparation import prepare
from distblock.report.monitor import Monitor
from distblock.schedule.stopping import Patience


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
        monitor.record(report(0, stages=range(1)))
        checkpoint = Account.from_json(monitor.account.to_json())
        hops = monitor.hops_table()
        monitor.record(report(1, stages=range(1)))
        assert trained() == 100
        monitor.restore(checkpoint, hops, elapsed_s=0.0)
        assert trained() == 100
        monitor.record(report(1, stages=range(1)))
        assert trained() == 150
