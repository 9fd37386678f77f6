"""Plans told as runs, against what a hand works out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from distblock.planning.forecast import Forecast, Telling, forecast
from distblock.planning.layout import Piece, Plan, Seat, Surroundings
from distblock.planning.simulation import CALL_S, DRIVER_S
from distblock.schedule.replay import Absence

AROUND = Surroundings(cores=64, link_bytes_per_s=1e6, memcpy_bytes_per_s=1e10)
CALLS = 2 * CALL_S + DRIVER_S


def plan(*compute_s: float, nodes: str, wire_bytes: float = 0.0) -> Plan:
    pieces = tuple(
        Piece(
            blocks=range(place, place + 1),
            seat=Seat(node=node, memory_bytes=math.inf),
            codec="fp32",
            compute_s=seconds,
            link_s=wire_bytes / 1e6,
            wire_bytes=wire_bytes,
            memory_bytes=1.0,
        )
        for place, (seconds, node) in enumerate(zip(compute_s, nodes, strict=True))
    )
    return Plan(pieces=pieces, pace_s=max(compute_s), slowest="", num_samples=64)


def told(given: Plan, **telling: object) -> Forecast:
    return forecast(given, AROUND, Telling(**{"microbatches": 50, **telling}))  # type: ignore[arg-type]


def test_the_slower_worker_computes_all_the_time_and_the_other_half_of_it():
    found = told(plan(0.2, 0.4, nodes="aa"))
    assert found.wall_s == pytest.approx(0.2 + 50 * 0.4, rel=0.01)
    assert found.samples_per_s == pytest.approx(50 * 64 / found.wall_s)
    assert found.first_s == pytest.approx(0.6, abs=4 * CALLS)
    first, second = found.shares
    assert (first.computing, second.computing) == pytest.approx((0.5, 1.0), abs=0.02)
    assert first.waiting == pytest.approx(0.5, abs=0.02)
    assert first.exposed == second.exposed == 0


def test_a_link_that_binds_is_what_its_worker_waits_for():
    found = told(plan(0.1, 0.1, nodes="ab", wire_bytes=3e5), delay_s=0.05)
    assert found.wall_s == pytest.approx(0.1 + 50 * 0.3 + 0.05 + 0.1, rel=0.01)
    assert found.shares[1].exposed == pytest.approx(2 / 3, abs=0.02)
    # Within a node nothing waits for a link.
    assert told(plan(0.1, 0.1, nodes="aa", wire_bytes=3e5)).shares[1].exposed == 0


def test_edges_between_the_same_nodes_share_a_link():
    found = told(plan(0.1, 0.1, 0.1, 0.1, nodes="abab", wire_bytes=3e5))
    assert found.wall_s == pytest.approx(50 * 0.6, rel=0.05)


def test_parcels_fill_the_pipeline_later():
    one, ten = (told(plan(0.1, 0.1, nodes="aa"), per_call=count) for count in (1, 10))
    assert one.first_s == pytest.approx(0.2, abs=4 * CALLS)
    assert ten.first_s == pytest.approx(2.0, abs=4 * CALLS)
    assert ten.wall_s == pytest.approx(6.0, rel=0.01)


def test_a_worker_that_is_away_is_waited_for():
    found = told(plan(0.1, 0.1, nodes="aa"), absences=[Absence(place=2, begin_s=1.0, end_s=4.0)])
    # What it was computing is begun again.
    assert found.wall_s == pytest.approx(0.1 + 50 * 0.1 + 3.0, abs=0.2)
    share = found.shares[1]
    assert share.away == pytest.approx(3.0 / found.wall_s)
    assert share.computing + share.waiting + share.away == pytest.approx(1.0)
    # Nobody waits for a link who is not there.
    slow = told(plan(0.1, 0.1, nodes="ab", wire_bytes=3e5), absences=[Absence(place=2, begin_s=1.0, end_s=4.0)])
    assert slow.shares[1].exposed <= slow.shares[1].waiting


def test_workers_of_a_node_with_too_few_cores_take_longer():
    given = plan(0.1, 0.2, 0.1, nodes="aab")
    scarce = forecast(given, replace(AROUND, cores=1, link_bytes_per_s=1e12), Telling(microbatches=50))
    # Together they take 0.3 s of the one core; the other node's worker has its own.
    assert scarce.wall_s == pytest.approx(0.15 + 50 * 0.3 + 0.1, rel=0.01)
    assert [share.computing for share in scarce.shares] == pytest.approx([0.5, 1.0, 1 / 3], abs=0.02)
    assert told(given).wall_s == pytest.approx(0.1 + 50 * 0.2 + 0.1, rel=0.01)


def test_slow_data_do_not_make_workers_compute_longer():
    given = plan(0.1, 0.1, nodes="aa")
    found = forecast(given, replace(AROUND, data_s=1.0), Telling(microbatches=50))
    assert found.shares[1].computing == pytest.approx(0.1, rel=0.05)
    assert found.first_s == pytest.approx(1.2, rel=0.05)


def test_each_row_of_replicas_sends_its_share():
    alone = plan(0.01, 0.01, nodes="ab", wire_bytes=3e5)
    assert told(alone).wall_s == pytest.approx(50 * 0.3, rel=0.01)
    assert told(replace(alone, replicas=2)).wall_s == pytest.approx(50 * 0.15, rel=0.02)
