"""The nodes that a run sits on, and those that have gone since it began.

A node's death shows first as the death of its workers, and a moment later in the cluster's own list. A worker can be
started again by itself; what lay on its node cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from distblock.errors import AttemptLostError


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster.

    Attributes:
        node_id: Ray's name of it.
        address: of its host, as the other nodes reach it.
        hostname: what the host calls itself.
    """

    node_id: str
    address: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.address} ({self.hostname})"


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


def nodes_of(group: PlacementGroup) -> list[Node]:
    """The node of each bundle of a group that is ready.

    Raises:
        AttemptLostError: one of them has gone meanwhile.
    """
    known = {
        entry["NodeID"]: Node(
            node_id=entry["NodeID"], address=entry["NodeManagerAddress"], hostname=entry["NodeManagerHostname"]
        )
        for entry in ray.nodes()
    }
    placed: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    if not all(node in known for node in placed.values()):
        raise AttemptLostError("node_died", "a node that was to hold workers", "it left before they started")
    return [known[placed[bundle]] for bundle in sorted(placed)]
