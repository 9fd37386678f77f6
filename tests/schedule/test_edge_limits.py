"""How much may be in flight on edges."""

from __future__ import annotations

from distblock.config import make_config
from distblock.schedule.credits import ON_THE_WAY_S, Limit, edge_limits


def test_counts_and_bytes_are_those_of_the_settings():
    config = make_config({"data": {"prefetch": 3, "workers": 2}, "channel": {"max_in_flight": 5}})
    most = config.channel.max_in_flight_bytes
    assert edge_limits(config, [None, None]) == [Limit(count=6, num_bytes=most), Limit(count=5, num_bytes=most)]


def test_a_slow_line_has_no_more_in_flight_than_it_carries_before_ray_asks_again():
    config = make_config({})
    slow, quick = edge_limits(config, [2.5e6, 1e10])
    assert slow.num_bytes == int(2.5e6 * ON_THE_WAY_S)
    assert quick.num_bytes == config.channel.max_in_flight_bytes
