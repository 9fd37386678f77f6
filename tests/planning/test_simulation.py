"""Simulated runs against what a hand works out."""

from __future__ import annotations

import pytest

from distblock.planning.simulation import simulate
from distblock.schedule.replay import Absence, Link

QUIET = {"call_s": 0.0, "driver_s": 0.0, "num_samples": 64}


def test_the_slowest_worker_sets_the_pace_and_the_pipeline_fills_first():
    told = simulate([0.1, 0.2, 0.1], microbatches=50, **QUIET)  # type: ignore[arg-type]
    assert told.wall_s == pytest.approx(0.1 + 50 * 0.2 + 0.1)


def test_a_thousand_workers_fill_and_drain():
    told = simulate([0.01] * 1000, microbatches=15, **QUIET)  # type: ignore[arg-type]
    assert told.wall_s == pytest.approx((1000 + 15 - 1) * 0.01)


def test_a_link_that_is_slower_than_computing_sets_the_pace():
    links = {1: Link(name="a", bytes_per_s=1e6, delay_s=0.05)}
    told = simulate([0.1, 0.1], microbatches=20, wire_bytes=[0, 3e5], links=links, **QUIET)  # type: ignore[arg-type]
    assert told.wall_s == pytest.approx(0.1 + 20 * 0.3 + 0.05 + 0.1)


def test_a_delay_alone_costs_its_time_once():
    links = {1: Link(name="a", bytes_per_s=1e9, delay_s=0.05)}
    told = simulate([0.1, 0.1], microbatches=20, wire_bytes=[0, 1], links=links, **QUIET)  # type: ignore[arg-type]
    assert told.wall_s == pytest.approx(0.1 + 0.05 + 20 * 0.1, abs=1e-6)


def test_edges_that_share_a_link_share_its_rate():
    own = {place: Link(name=f"l{place}", bytes_per_s=1e6) for place in (1, 2)}
    one = {place: Link(name="l", bytes_per_s=1e6) for place in (1, 2)}
    sizes = [0, 3e5, 3e5]
    apart = simulate([0.1] * 3, microbatches=50, wire_bytes=sizes, links=own, **QUIET)  # type: ignore[arg-type]
    shared = simulate([0.1] * 3, microbatches=50, wire_bytes=sizes, links=one, **QUIET)  # type: ignore[arg-type]
    assert apart.wall_s == pytest.approx(50 * 0.3, rel=0.1)
    assert shared.wall_s == pytest.approx(50 * 0.6, rel=0.1)


def test_a_worker_that_leaves_begins_again_what_it_had():
    away = Absence(place=1, begin_s=0.25, end_s=5.0)
    told = simulate([0.1, 0.1], microbatches=10, absences=[away], **QUIET)  # type: ignore[arg-type]
    # Two microbatches are done when it leaves; the third is begun again, and seven follow.
    assert told.wall_s == pytest.approx(5.0 + 8 * 0.1 + 0.1)


def test_what_the_driver_takes_counts_where_there_are_many_workers():
    quick = simulate([0.01] * 64, microbatches=300, num_samples=64, call_s=0.0, driver_s=0.0)
    held = simulate([0.01] * 64, microbatches=300, num_samples=64, call_s=0.0, driver_s=0.001)
    assert held.wall_s > 3 * quick.wall_s
    assert held.wall_s == pytest.approx(300 * 65 * 0.001, rel=0.1)
