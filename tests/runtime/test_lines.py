"""Which edges lie on which lines, and what is said of them; figures by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distblock.runtime.interfaces import Interface
from distblock.runtime.lines import Measured, Pair, bit_rate, crossings, describe, edge_lines, warnings
from distblock.runtime.nodes import Node

A, B, C = (Node(node_id=f"id-{name}", address=f"10.0.0.{index}", hostname=name) for index, name in enumerate("abc", 1))
AB, BA, BC = Pair(sender=A, receiver=B), Pair(sender=B, receiver=A), Pair(sender=B, receiver=C)
ETH0 = Interface(name="eth0", speed_bytes_per_s=1.25e9)
FAST = Measured(sender=ETH0, receiver=Interface(name="eth1"), rate_bytes_per_s=1.1e9)


def test_edges_within_one_host_are_left_out():
    # Three workers with stages from 0, 2 and 5, then the data worker.
    assert crossings([0, 2, 5], [[A, A, B]], [B]) == {0: [BA], 5: [AB]}
    assert crossings([0, 2, 5], [[A, A, A]], [A]) == {}


def test_two_ray_nodes_of_one_address_are_one_host():
    assert crossings([0], [[A]], [replace(A, node_id="another")]) == {}


def test_data_workers_on_several_hosts():
    assert crossings([0, 1], [[B, B]], [A, B, A, C]) == {0: [AB, Pair(sender=C, receiver=B)]}


def test_several_rows_of_workers():
    assert crossings([0, 1], [[A, A], [B, C]], [A]) == {0: [AB], 1: [BC]}


def test_an_edge_of_several_lines_is_as_fast_as_the_slowest():
    CB = Pair(sender=C, receiver=B)  # noqa: N806 - as the others
    crossed = {0: [AB, CB], 1: [BC]}
    slow = replace(FAST, rate_bytes_per_s=5e8)
    unknown = replace(FAST, rate_bytes_per_s=None, problem="refused")
    data, first = edge_lines(crossed, {AB: FAST, CB: slow, BC: FAST})
    assert (data.edge, data.sender, data.receiver, data.rate_bytes_per_s) == (0, "10.0.0.3", "10.0.0.2", 5e8)
    assert (first.sender_interface, first.receiver_interface) == ("eth0", "eth1")
    assert (first.sender_speed_bytes_per_s, first.receiver_speed_bytes_per_s) == (1.25e9, None)
    data, _ = edge_lines(crossed, {AB: unknown, CB: slow, BC: FAST})
    assert data.rate_bytes_per_s == 5e8
    data, _ = edge_lines(crossed, {AB: unknown, CB: unknown, BC: FAST})
    assert data.rate_bytes_per_s is None


def test_a_line_in_one_line():
    assert describe(AB, FAST, [0, 2]) == (
        "network 10.0.0.1 (eth0, 10 Gbit/s) -> 10.0.0.2 (eth1): 8.8 Gbit/s measured; edges data->0, 1->2"
    )
    refused = Measured(sender=ETH0, receiver=Interface(name=None), rate_bytes_per_s=None, problem="port 5 refused")
    assert describe(AB, refused, [1]) == (
        "network 10.0.0.1 (eth0, 10 Gbit/s) -> 10.0.0.2 (no interface): no rate measured (port 5 refused); edge 0->1"
    )


def test_nothing_to_warn_of():
    assert warnings({0: [AB], 1: [BC]}, {AB: FAST, BC: replace(FAST, rate_bytes_per_s=1.1e8)}) == []
    assert warnings({0: [AB]}, {AB: replace(FAST, rate_bytes_per_s=1.0)}) == []


def test_a_line_far_slower_than_others():
    [warning] = warnings({0: [AB], 1: [BC], 2: [AB]}, {AB: FAST, BC: replace(FAST, rate_bytes_per_s=1.0e8)})
    assert warning.startswith("warning: network 10.0.0.2 (b) -> 10.0.0.3 (c), edge 0->1: 800 Mbit/s, where another")
    assert "8.8 Gbit/s" in warning


def test_a_line_that_leaves_no_host():
    lo = Interface(name="lo", is_loopback=True)
    [warning] = warnings({1: [AB]}, {AB: replace(FAST, sender=lo)})
    assert warning.endswith("edge 0->1: lo is a loopback interface, but these are two hosts")
    # Two Ray nodes of one machine, each at a loopback address.
    same = Pair(sender=A, receiver=replace(B, hostname="a"))
    assert warnings({1: [same]}, {same: replace(FAST, sender=lo, receiver=lo)}) == []


@pytest.mark.parametrize(
    ("bytes_per_s", "text"),
    [
        (12.5e6, "100 Mbit/s"),
        (125, "1 kbit/s"),
        (11_949_338, "95.6 Mbit/s"),
        (1.25e9, "10 Gbit/s"),
        (125e6, "1 Gbit/s"),
    ],
)
def test_bit_rates(bytes_per_s: float, text: str):
    assert bit_rate(bytes_per_s) == text
