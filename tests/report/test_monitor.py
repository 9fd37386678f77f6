"""What listens to a run follows it when it goes back."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import replace
from io import StringIO
from typing import Any

from microbatches import microbatches
from report.reports import report
from rich.console import Console

from distblock.config import make_config
from distblock.messages import DataReport, Handling, Passage
from distblock.metrics.accounting import Account
from distblock.preparation import prepare
from distblock.reasons import judge_recording, recorded
from distblock.report.monitor import Monitor
from distblock.report.recent import unpack
from distblock.schedule.stopping import Patience


def listening(values: dict[str, Any], console: Console, **more: Any) -> Monitor:
    """To a run with some settings."""
    prepared = prepare(make_config(values))
    return Monitor(
        prepared.config,
        run="a-run",
        blueprint=prepared.blueprint,
        plan=prepared.plan,
        patience=Patience(None),
        console=console,
        **more,
    )


def test_what_has_just_happened_is_enough_for_a_verdict():
    told: list[bytes] = []
    monitor = listening({"resources": {"workers": 3}}, Console(file=StringIO()), keep_recent=told.append)
    with monitor:
        monitor.begin()
        for item in microbatches(5):
            own = [replace(report(0, stages=range(s, s + 1)), worker=s, item=item) for s in range(3)]
            for worker, each in enumerate(
                [DataReport(item=item, departures=(), node="a", passage=None), *own], start=-1
            ):
                at_s = float(4 * item.number + worker + 1)
                monitor.record_passage(replace(each, passage=passage(at_s)), handling(worker, at_s))
                monitor.record_driver(0.25, 1)
        monitor.record_standing([])
        monitor.record_standing([])
    # Not more often than every ten seconds.
    [content] = told
    table, config, figures = unpack(content)
    found = recorded(table, config, figures)
    assert found.driver_s == 0.25
    assert [stage["blocks"] for stage in figures["stages"]] == [[0], [1], [2]]
    assert judge_recording(found, config, figures).causes


def passage(at_s: float) -> Passage:
    """All of a second computed."""
    before = dict.fromkeys(("asked_s", "fetched_s", "decoded_s", "started_s"), at_s)
    after = dict.fromkeys(("finished_s", "encoded_s", "stored_s"), at_s + 1)
    return Passage(**before, **after, wire_bytes=10)


def handling(worker: int, at_s: float) -> Handling:
    return Handling(worker=worker, ready_s=at_s, backpressure_s=0.0, sent_s=at_s, told_s=at_s + 1, handled_s=at_s + 1)


def test_the_exporter_goes_on_with_the_run_that_has_gone_back():
    console = Console(file=StringIO(), width=120)
    monitor = listening({"executor": "local", "metrics": {"port": 0}}, console)
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
