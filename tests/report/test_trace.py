"""The trace of a made-up timeline: what overlaps, which arrows there are, and a clock that is set right."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from microbatches import microbatches

from distblock.messages import DataReport, Handling, Passage, StageReport, WorkerReport
from distblock.metrics.timeline import FIRST, LAST, Timeline
from distblock.report.trace import trace

ITEM = replace(microbatches(1)[0], num_samples=8, batch_samples=8)
HERE = Handling(worker=0, ready_s=100.0, backpressure_s=0.0, sent_s=100.0, told_s=101.0, handled_s=101.0)


def passage(begin_s: float) -> Passage:
    """Half a second: fetched, decoded, computed, encoded and stored in 100 ms each."""
    return Passage(
        asked_s=begin_s,
        fetched_s=begin_s + 0.1,
        decoded_s=begin_s + 0.2,
        started_s=begin_s + 0.2,
        finished_s=begin_s + 0.3,
        encoded_s=begin_s + 0.4,
        stored_s=begin_s + 0.5,
        wire_bytes=64,
    )


def report(worker: int, begin_s: float, *, number: int = 0, node: str = "10.0.0.1") -> WorkerReport:
    stage = StageReport(
        stage=worker,
        role="train",
        loss_sum=0.0,
        transport_cost_sum=0.0,
        num_correct=0,
        num_samples=8,
        compute_s=0.1,
        lr=0.1,
    )
    return WorkerReport(
        worker=worker,
        item=replace(ITEM, number=number),
        stages=(stage,),
        arrivals=(),
        departures=(),
        started_s=begin_s + 0.2,
        finished_s=begin_s + 0.3,
        idle_s=0.0,
        peak_memory_bytes=0,
        node=node,
        passage=passage(begin_s),
    )


def timeline(ahead_s: float = 0.0) -> Timeline:
    """One microbatch: read by a data worker, then at two workers; the last one's clock is ahead."""
    filled = Timeline()
    data = DataReport(item=ITEM, departures=(), node="10.0.0.1", passage=passage(100.0))
    filled.record(data, replace(HERE, worker=-1))
    filled.record(report(0, 101.0), replace(HERE, ready_s=101.0, sent_s=101.0, told_s=101.5, handled_s=101.5))
    last = replace(HERE, worker=1, ready_s=101.5, sent_s=101.5, told_s=102.1, handled_s=102.1)
    filled.record(report(1, 101.55 + ahead_s, node="10.0.0.2"), last)
    return filled


def test_seconds_count_from_the_first_microbatch():
    rows = timeline().table().to_pylist()
    assert [(row["worker"], row["stage"]) for row in rows] == [(-1, -1), (0, 0), (1, 1)]
    assert [row["started_s"] for row in rows] == pytest.approx([0.2, 1.2, 1.75])
    assert rows[0]["ready_s"] == 0.0


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_clock_that_contradicts_the_drivers_is_set_right(ahead_s: float):
    *_, row = timeline(ahead_s).table().to_pylist()
    # Between its call, at 1.5 s, and the end that was told, at 2.1 s, there is room for 0.5 s: the middle is 1.55.
    assert row["asked_s"] == pytest.approx(1.55)
    assert row["stored_s"] == pytest.approx(2.05)


def test_the_beginning_and_the_end_of_a_long_run_are_kept():
    long = Timeline()
    for number in range(FIRST + LAST + 5):
        long.record(report(0, 100.0, number=number), HERE)
    numbers = long.table()["number"].to_pylist()
    assert numbers == [*range(FIRST), *range(FIRST + 5, FIRST + LAST + 5)]


def test_slices_lie_on_rows_of_their_own_and_arrows_join_them():
    events = trace(timeline().table())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert {(event["cat"], event["tid"]) for event in slices} == {
        ("fetch", 100_000),
        ("compute", 0),
        ("store", 200_000),
    }
    computed = {event["pid"]: event for event in slices if event["cat"] == "compute"}
    starts = [event for event in events if event["ph"] == "s"]
    ends = [event for event in events if event["ph"] == "f"]
    assert [(event["pid"], after["pid"]) for event, after in zip(starts, ends, strict=True)] == [(10_000, 0), (0, 1)]
    # Each end lies within the slice that it belongs to, or viewers drop it.
    for event in (*starts, *ends):
        around = computed[event["pid"]]
        assert around["ts"] <= event["ts"] <= around["ts"] + around["dur"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names[10_000] == "data worker 0, on 10.0.0.1"
    assert names[1] == "worker 1, from stage 1, on 10.0.0.2"


def test_arrows_join_what_is_for_one_stage():
    """Where stages train one by one, microbatches are numbered anew for each."""
    filled = Timeline()
    for target, begin_s in ((0, 101.0), (1, 104.0)):
        item = replace(ITEM, stage=target, lap=0)
        for worker in range(target + 1):
            at_s = begin_s + worker
            handling = replace(HERE, worker=worker, ready_s=at_s, sent_s=at_s, told_s=at_s + 1, handled_s=at_s + 1)
            filled.record(replace(report(worker, at_s), item=item), handling)
    starts, ends = ([event for event in trace(filled.table())["traceEvents"] if event["ph"] == kind] for kind in "sf")
    # From the first worker's second microbatch, which began at 104 s, 3 s after the beginning.
    assert [(event["pid"], event["ts"]) for event in starts] == [(0, 3_300_000 - 1)]
    assert [(event["pid"], event["ts"]) for event in ends] == [(1, 4_200_000)]


def test_an_empty_timeline_is_an_empty_trace():
    assert trace(Timeline().table())["traceEvents"] == []


def test_what_overlaps_has_a_row_of_its_own():
    filled = Timeline()
    # Half a second each, a fifth of a second apart: fetches take 0.2 s and follow each other, stores take 0.2 s, too.
    for number in range(4):
        filled.record(report(0, 100.0 + 0.15 * number, number=number), replace(HERE, sent_s=100.0))
    slices = [event for event in trace(filled.table())["traceEvents"] if event["ph"] == "X"]
    for category, threads in (("fetch", {100_000, 100_001}), ("store", {200_000, 200_001})):
        own = [event for event in slices if event["cat"] == category]
        assert {event["tid"] for event in own} == threads
        for thread in threads:
            ends = [(event["ts"], event["ts"] + event["dur"]) for event in own if event["tid"] == thread]
            assert all(end <= begin for (_, end), (begin, _) in pairwise(sorted(ends)))
    names = [event["args"]["name"] for event in trace(filled.table())["traceEvents"] if event["name"] == "thread_name"]
    assert names == ["compute", "fetch", "fetch 2", "store", "store 2"]
