"""How much may be in flight on an edge.

A fast sender fills the object store with what a slow receiver has not yet read, until the store spills to disk. A
credit is leave to send one more: it is taken before the microbatch is computed and comes back once the receiver is
done with it, so what is in flight is bounded in count and bytes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Most microbatches and bytes in flight on one edge; one microbatch always passes."""

    count: int
    num_bytes: int


class Credits:
    """What is in flight on one edge.

    Args:
        limit: the most that may be.
    """

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.count = 0
        self.num_bytes = 0

    def has_room(self, num_bytes: int) -> bool:
        """Whether a microbatch of this size may be sent now."""
        if self.count == 0:
            return True
        return self.count < self.limit.count and self.num_bytes + num_bytes <= self.limit.num_bytes

    def take(self, num_bytes: int) -> None:
        """One more is in flight."""
        self.count += 1
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """The receiver is done with one."""
        self.count -= 1
        self.num_bytes -= num_bytes
