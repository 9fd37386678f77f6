"""Oracle: the account's totals; and, for one interval, figures written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pyarrow as pa
import pytest

from distblock.messages import Arrival, Departure
from distblock.metrics import log
from distblock.metrics.accounting import Account
from distblock.metrics.log import HOPS_COUNTS, HOPS_QUANTILES, HOPS_SECONDS, HopsLog, metrics_table


def logged(run, *, interval_s: float, step_s: float = 0.3) -> tuple[Account, pa.Table]:
    """A made-up run in which a report comes in every ``step_s`` seconds."""
    account, hops_log = Account(num_stages=3), HopsLog(interval_s=interval_s)
    for turn, report in enumerate(run.reports):
        hops_log.advance(turn * step_s, account)
        if report.worker == 0:
            account.record_departure(run.departures[report.item.number], "10.0.0.1")
            account.record_backpressure(1, 0.1)
        account.record(report)
    return account, hops_log.table(account)


@pytest.mark.parametrize("interval_s", [0.1, 1.0, 7.0, 1e6])
def test_rows_add_up_to_the_account(run, interval_s):
    account, table = logged(run, interval_s=interval_s)
    rows = table.to_pylist()
    for sums in account.edges():
        own = [row for row in rows if row["edge"] == sums.name]
        for name in HOPS_COUNTS:
            assert sum(row[name] for row in own) == getattr(sums, name)
        for name in HOPS_SECONDS:
            assert math.fsum(row[name] for row in own) == pytest.approx(getattr(sums, name), rel=1e-9)


def test_rows_add_up_across_batches(run, monkeypatch):
    _, whole = logged(run, interval_s=0.1)
    monkeypatch.setattr(log, "_BATCH_ROWS", 4)
    _, batched = logged(run, interval_s=0.1)
    assert batched.column("start_s").num_chunks > 2
    assert batched.equals(whole)


def test_an_interval_holds_what_was_told_in_it():
    account, hops_log = Account(num_stages=1), HopsLog(interval_s=2.0)
    departure = Departure(edge=0, payload_bytes=100, wire_bytes=60, encode_s=0.5, put_s=0.25)
    for elapsed_s in (0.0, 1.9, 2.0, 9.0):
        hops_log.advance(elapsed_s, account)
        account.record_departure(departure, "localhost")
    rows = hops_log.table(account).to_pylist()
    assert [(row["start_s"], row["payload_bytes"], row["wire_bytes"], row["encode_s"]) for row in rows] == [
        (0.0, 200, 120, 1.0),
        (2.0, 100, 60, 0.5),
        (8.0, 100, 60, 0.5),
    ]


def test_quantiles_are_those_of_an_intervals_own_hops(run):
    account, hops_log = Account(num_stages=3), HopsLog(interval_s=1.0)
    taken = {0: [0.010 * (1 + place) for place in range(100)], 1: [], 2: [2.0]}
    for interval, seconds in taken.items():
        for each in seconds:
            hops_log.advance(interval + 0.5, account)
            departure = Departure(edge=0, payload_bytes=8, wire_bytes=8, encode_s=0.0, put_s=each / 2)
            account.record_departure(departure, "localhost")
            arrival = Arrival(edge=0, fetch_s=each / 4, decode_s=each / 4, exposed_s=0.0)
            account.record(replace(run.reports[0], arrivals=(arrival,), departures=()))
    first, second = hops_log.table(account).to_pylist()
    # Oracle: by hand, the n-th of 100 in order; within the histogram's 1 %.
    assert [first[name] for name in HOPS_QUANTILES] == pytest.approx([0.01, 0.5, 0.99, 1.0], rel=0.0101)
    assert [second[name] for name in HOPS_QUANTILES] == pytest.approx([2.0] * 4, rel=0.0101)
    # A run that was begun before there were quantiles goes on.
    older = hops_log.table(account).drop_columns(list(HOPS_QUANTILES))
    again = HopsLog(interval_s=1.0, before=older, account=account).table(account)
    assert again.column("p50_s").null_count == 2
    assert again.drop_columns(list(HOPS_QUANTILES)).equals(older)


def test_asking_for_the_table_changes_nothing(run):
    account, hops_log = Account(num_stages=3), HopsLog(interval_s=1.0)
    account.record(run.reports[0])
    assert hops_log.table(account).equals(hops_log.table(account))
    assert HopsLog(interval_s=1.0).table(Account(num_stages=3)).num_rows == 0


def test_metrics_table_holds_the_rows(run):
    account, _ = logged(run, interval_s=1.0)
    table = metrics_table(account.rows())
    assert table.num_rows == 9
    assert table.schema.names == list(type(account.rows()[0]).__dataclass_fields__)
    first = account.rows()[0]
    assert table.column("validation_accuracy")[0].as_py() == first.validation_accuracy
    assert table.column("test_loss")[0].as_py() is None


def test_files_carry_their_format_version(run):
    account, hops = logged(run, interval_s=1.0)
    for table in (hops, metrics_table(account.rows())):
        assert table.schema.metadata[b"format_version"] == b"1"
