"""Nodes that have gone since a run began.

A node's death shows first as the death of its workers, and a moment later in the cluster's own list. A worker can be
started again by itself; what lay on its node cannot.
"""

from __future__ import annotations

import ray


class Nodes:
    """The cluster's nodes as they were."""

    def __init__(self) -> None:
        self._addresses = _alive()

    @property
    def is_single(self) -> bool:
        """Whether there is only one: if it dies, so does the driver."""
        return len(self._addresses) == 1

    def lost(self) -> dict[str, str]:
        """Addresses of those that have gone, by Ray's name of the node."""
        alive = _alive()
        return {node: address for node, address in self._addresses.items() if node not in alive}


def _alive() -> dict[str, str]:
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
