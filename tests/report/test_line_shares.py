"""Which share of its line an edge's traffic took; by hand."""

from __future__ import annotations

import pytest

from distblock.messages import Line
from distblock.metrics.hops import EdgeSums
from distblock.report.edges import line_share

LINE = Line(
    edge=1,
    sender="10.0.0.1",
    receiver="10.0.0.2",
    sender_interface="eth0",
    receiver_interface="eth0",
    sender_speed_bytes_per_s=None,
    receiver_speed_bytes_per_s=None,
    rate_bytes_per_s=100.0,
)


@pytest.mark.parametrize(("cross_node_hops", "share"), [(4, 0.5), (1, 0.125), (0, 0.0)])
def test_what_stays_on_a_host_takes_nothing(cross_node_hops: int, share: float):
    # 500 bytes in 10 s on a line of 100 bytes a second.
    sums = EdgeSums(name="0->1", hops=4, cross_node_hops=cross_node_hops, wire_bytes=500)
    assert line_share(LINE, sums, wall_s=10.0) == share


def test_an_edge_that_nothing_has_crossed():
    assert line_share(LINE, EdgeSums(name="0->1"), wall_s=10.0) is None
