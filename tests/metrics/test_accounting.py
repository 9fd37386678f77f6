"""Oracle: the same figures summed over lists, straight from the reports of a made-up run."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from distblock.metrics.accounting import Account


def account_of(run) -> Account:
    account = Account(num_stages=3)
    for departure in run.departures:
        account.record_departure(departure, "10.0.0.1")
    for report in run.reports:
        account.record(report)
    return account


def stage_reports(run, *, stage, epoch, part):
    return [
        told
        for report in run.reports
        if report.item.epoch == epoch and report.item.part == part
        for told in report.stages
        if told.stage == stage
    ]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_means_are_over_samples_however_they_are_cut(run, part):
    account = account_of(run)
    for stage in range(3):
        for epoch in range(3):
            told = stage_reports(run, stage=stage, epoch=epoch, part=part)
            samples = 112 if part == "train" else 40
            sums = account.stage_pass(stage, epoch, part)
            assert sums is not None
            assert sums.num_samples == samples
            assert sums.loss == pytest.approx(math.fsum(report.loss_sum for report in told) / samples, rel=1e-12)
            assert sums.accuracy == sum(report.num_correct for report in told) / samples
            cost = math.fsum(report.transport_cost_sum for report in told) / samples
            assert sums.transport_cost == pytest.approx(cost, rel=1e-12)


def test_a_row_per_stage_and_epoch(run):
    rows = account_of(run).rows()
    assert [(row.epoch, row.stage) for row in rows] == [(epoch, stage) for epoch in range(3) for stage in range(3)]
    assert {row.lap for row in rows} == {0}
    for row in rows:
        told = stage_reports(run, stage=row.stage, epoch=row.epoch, part="validation")
        assert row.validation_accuracy == sum(report.num_correct for report in told) / 40
        assert row.num_samples == 112
        assert row.lr == stage_reports(run, stage=row.stage, epoch=row.epoch, part="train")[-1].lr
        assert (row.test_loss is None) == (row.epoch < 2)  # the test part comes once, at the end


def test_the_learning_rate_is_the_last_steps_whoever_tells_first(run):
    expected = [row.lr for row in account_of(run).rows()]
    late = Account(num_stages=3)
    for report in reversed(run.reports):
        late.record(report)
    assert [row.lr for row in late.rows()] == expected
    assert len(set(expected)) > 1


def test_seconds_of_rows_add_up_to_those_of_the_reports(run):
    account = account_of(run)
    for stage in range(3):
        rows = [row for row in account.rows() if row.stage == stage]
        compute_s = math.fsum(told.compute_s for report in run.reports for told in report.stages if told.stage == stage)
        worker = {0: 0, 2: 1}.get(stage)  # stage 1 is the second on its worker: no idling of its own
        idle_s = math.fsum(report.idle_s for report in run.reports if report.worker == worker)
        assert math.fsum(row.compute_s for row in rows) == pytest.approx(compute_s, rel=1e-12)
        assert math.fsum(row.idle_s for row in rows) == pytest.approx(idle_s, rel=1e-12)
        totals = account.totals()[stage]
        assert totals.compute_s == pytest.approx(compute_s, rel=1e-12)
        assert totals.idle_s == pytest.approx(idle_s, rel=1e-12)
        assert totals.num_samples == 3 * 112
        assert totals.peak_memory_bytes == max(
            report.peak_memory_bytes for report in run.reports if report.worker == (1 if stage == 2 else 0)
        )
    assert account.samples_trained == 3 * 112


def test_a_pass_cut_by_the_time_limit_still_has_its_row(make_run):
    run = make_run(batches=5)  # of 4 a pass: the first of the second epoch is the last
    account = account_of(run)
    rows = account.rows()
    assert [(row.epoch, row.stage) for row in rows] == [(epoch, stage) for epoch in range(2) for stage in range(3)]
    assert [row.num_samples for row in rows] == [112] * 3 + [32] * 3
    for row in rows[3:]:
        told = stage_reports(run, stage=row.stage, epoch=1, part="train")
        assert row.train_loss == pytest.approx(math.fsum(report.loss_sum for report in told) / 32, rel=1e-12)
        assert row.validation_loss is not None
        assert row.test_loss is not None


def test_an_unfinished_pass_is_seen_while_it_runs(run):
    account = Account(num_stages=3)
    account.record(run.reports[0])
    assert account.stage_pass(2, 0, "train") is None
    sums = account.stage_pass(1, 0, "train")
    assert sums is not None
    assert sums.num_samples == run.items[0].num_samples
    account.record(run.reports[1])
    assert sums.num_samples == run.items[0].num_samples  # a copy


def test_edges_add_up_both_sides(run):
    account = account_of(run)
    account.record_backpressure(2, 0.25)
    account.record_backpressure(2, 0.5)
    departures = run.departures + [told for report in run.reports for told in report.departures]
    arrivals = [told for report in run.reports for told in report.arrivals]
    edges = account.edges()
    assert [sums.name for sums in edges] == ["data->0", "0->1", "1->2"]
    for edge, sums in enumerate(edges):
        sent = [told for told in departures if told.edge == edge]
        came = [told for told in arrivals if told.edge == edge]
        assert sums.hops == len(run.items)
        assert sums.payload_bytes == sum(told.payload_bytes for told in sent)
        assert sums.wire_bytes == sum(told.wire_bytes for told in sent)
        assert sums.encode_s == pytest.approx(math.fsum(told.encode_s for told in sent), rel=1e-12)
        assert sums.put_s == pytest.approx(math.fsum(told.put_s for told in sent), rel=1e-12)
        overlapped_s = math.fsum(told.fetch_s + told.decode_s - told.exposed_s - told.in_turn_s for told in came)
        assert sums.overlapped_s == pytest.approx(overlapped_s, rel=1e-9)
        assert sums.exposed_s == pytest.approx(math.fsum(told.exposed_s for told in came), rel=1e-9)
        assert sums.encode_in_turn_s == pytest.approx(math.fsum(told.in_turn_s for told in sent), rel=1e-9)
        assert sums.decode_in_turn_s == pytest.approx(math.fsum(told.in_turn_s for told in came), rel=1e-9)
        assert (sums.encode_in_turn_s > 0) == (edge > 0)
    assert [sums.backpressure_s for sums in edges] == [0, 0, 0.75]
    assert [sums.in_process for sums in edges] == [False, True, False]


def test_a_hop_counts_once_both_sides_are_told(run):
    account = Account(num_stages=3)
    account.record(run.reports[0])  # worker 0: the data has arrived, stage 1 has sent
    assert [sums.hops for sums in account.edges()] == [0, 1, 0]
    account.record_departure(run.departures[0], "10.0.0.9")
    assert [sums.hops for sums in account.edges()] == [1, 1, 0]
    account.record(next(report for report in run.reports if report.worker == 1))
    assert [sums.hops for sums in account.edges()] == [1, 1, 1]


def test_a_hop_knows_what_it_crossed(run):
    paths = [(sums.in_process_hops, sums.same_node_hops, sums.cross_node_hops) for sums in account_of(run).edges()]
    hops = len(run.items)
    assert paths == [(0, hops, 0), (hops, 0, 0), (0, 0, hops)]


def test_sizes_of_an_edge_add_up_to_its_sums(run):
    """Both sides tell in the order of microbatches, so that the n-th departure and arrival are one hop's."""
    account = account_of(run)
    sent = run.departures
    came = [arrival for report in run.reports for arrival in report.arrivals if arrival.edge == 0]
    seconds = [one.encode_s + one.put_s + other.fetch_s + other.decode_s for one, other in zip(sent, came, strict=True)]
    sizes = account.sizes(0)
    assert sum(size.seconds.count for size in sizes) == account.edges()[0].hops == len(seconds)
    assert sum(size.seconds.sum_s for size in sizes) == pytest.approx(math.fsum(seconds), rel=1e-12)
    assert min(size.seconds.min_s for size in sizes) == min(seconds)
    assert max(size.seconds.max_s for size in sizes) == max(seconds)
    for size in sizes:
        within = [each.wire_bytes for each in sent if size.upto_bytes // 2 < each.wire_bytes <= size.upto_bytes]
        assert (size.seconds.count, size.wire_bytes) == (len(within), sum(within))
    assert account.sizes(1) == []  # within a process


def test_a_size_class_ends_with_a_power_of_two(run):
    account = Account(num_stages=3)
    for wire_bytes in (4095, 4096, 4097, 8192):
        account.record_departure(replace(run.departures[0], wire_bytes=wire_bytes), "10.0.0.1")
        account.record(run.reports[0])
    assert [(size.upto_bytes, size.wire_bytes) for size in account.sizes(0)] == [(4096, 8191), (8192, 12289)]


def test_sizes_come_back_from_json(run):
    account = account_of(run)
    again = Account.from_json(json.loads(json.dumps(account.to_json())))
    assert [again.sizes(edge) for edge in range(3)] == [account.sizes(edge) for edge in range(3)]


def test_what_is_dropped_makes_no_hop(run):
    """In the asynchronous regime: the next hop is not taken for the dropped one's."""
    account = Account(num_stages=3)
    account.record_departure(replace(run.departures[0], encode_s=100.0), "10.0.0.1")
    account.record_drop(0)
    account.record_departure(replace(run.departures[1], encode_s=0.0, put_s=0.0), "10.0.0.1")
    account.record(run.reports[0])
    [size] = account.sizes(0)
    assert size.seconds.count == account.edges()[0].hops == 1
    assert size.seconds.max_s < 100
