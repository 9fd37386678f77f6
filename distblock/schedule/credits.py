"""How much may be in flight on an edge.

A fast sender fills the object store with what a slow receiver has not yet read, until the store spills to disk. A
credit is leave to send one more: it is taken before the microbatch is computed and comes back once the receiver is
done with it, so what is in flight is bounded in count and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distblock.config import Config

ON_THE_WAY_S = 8.0
"""Seconds of a line's rate that may be in flight on it. Ray asks again for what has not arrived after ten
(RAY_object_manager_pull_timeout_ms), and what is sent twice takes the line from what is sent once."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Most parcels and bytes in flight on one edge; one parcel always passes."""

    count: int
    num_bytes: int


def edge_limits(config: Config, rates_bytes_per_s: Sequence[float | None]) -> list[Limit]:
    """Of the edge into each worker, that from the data first.

    Args:
        config: the run's settings.
        rates_bytes_per_s: of the line that each edge lies on; None: within a node, or not known.
    """
    channel, limits = config.channel, []
    for place, rate in enumerate(rates_bytes_per_s):
        count = channel.max_in_flight if place else config.data.prefetch * config.data.workers
        most = channel.max_in_flight_bytes
        limits.append(Limit(count=count, num_bytes=most if rate is None else min(most, int(rate * ON_THE_WAY_S))))
    return limits


class Credits:
    """What is in flight on one edge.

    Args:
        limit: the most that may be.
    """

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.count = 0
        self.num_microbatches = 0
        self.num_bytes = 0

    def has_room(self, num_bytes: int) -> bool:
        """Whether a parcel of this size may be sent now."""
        if self.count == 0:
            return True
        return self.count < self.limit.count and self.num_bytes + num_bytes <= self.limit.num_bytes

    def take(self, num_bytes: int, num_microbatches: int) -> None:
        """One more parcel is in flight."""
        self.count += 1
        self.num_microbatches += num_microbatches
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int, num_microbatches: int) -> None:
        """The receiver is done with one."""
        self.count -= 1
        self.num_microbatches -= num_microbatches
        self.num_bytes -= num_bytes
