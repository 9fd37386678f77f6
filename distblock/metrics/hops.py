"""The sums of an edge, and how the two sides of a hop find each other.

The sender knows what it sent and the receiver how long it waited, and they tell it in different reports. Only both
together say that a hop is over and what it crossed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Literal

from distblock.messages import Departure, WorkerReport

HopPath = Literal["in_process", "same_node", "cross_node"]
"""What a hop crosses: nothing, the object store of one node, or the network."""


def edge_name(edge: int) -> str:
    """``"0->1"`` for the edge that enters stage 1, ``"data->0"`` for edge 0."""
    return f"{edge - 1}->{edge}" if edge else "data->0"


@dataclass(kw_only=True, slots=True)
class EdgeSums:
    """One edge over the run so far; the seconds and bytes are those of `Departure` and `Arrival`.

    Attributes:
        name: ``"0->1"``, or ``"data->0"``.
        hops: microbatches that crossed it, told by both ends.
        in_process_hops, same_node_hops, cross_node_hops: those hops by what they crossed.
        backpressure_s: seconds the sender stood idle for want of a credit.
    """

    name: str
    hops: int = 0
    in_process_hops: int = 0
    same_node_hops: int = 0
    cross_node_hops: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    encode_s: float = 0.0
    put_s: float = 0.0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    exposed_s: float = 0.0
    backpressure_s: float = 0.0

    @property
    def overlapped_s(self) -> float:
        """Seconds of fetching and decoding hidden behind computing."""
        return self.fetch_s + self.decode_s - self.exposed_s

    @property
    def in_process(self) -> bool:
        """Nothing was stored: the edge lies within one worker."""
        return self.wire_bytes == 0

    def count(self, path: HopPath) -> None:
        """Count a hop whose two sides are known."""
        self.hops += 1
        if path == "in_process":
            self.in_process_hops += 1
        elif path == "same_node":
            self.same_node_hops += 1
        else:
            self.cross_node_hops += 1


class HopMatcher:
    """Joins the two sides of hops: the n-th departure and the n-th arrival told of an edge make one.

    Data workers may tell out of order, so a pair is not always the two sides of the same microbatch; but an edge has
    one receiver, so what is counted comes out the same.
    """

    def __init__(self) -> None:
        self._departed: dict[int, deque[tuple[int, str]]] = defaultdict(deque)
        self._arrived: dict[int, deque[str]] = defaultdict(deque)

    def depart(self, edge: int, *, wire_bytes: int, node: str) -> HopPath | None:
        """The sender's side; the path, if that completes a hop."""
        if self._arrived[edge]:
            return _path(wire_bytes, node, self._arrived[edge].popleft())
        self._departed[edge].append((wire_bytes, node))
        return None

    def to_json(self) -> dict[str, Any]:
        """What waits for its other side: runs of equal ones."""
        departed = [
            [edge, *each, len(list(run))] for edge, sides in self._departed.items() for each, run in groupby(sides)
        ]
        arrived = [
            [edge, node, len(list(run))] for edge, sides in self._arrived.items() for node, run in groupby(sides)
        ]
        return {"departed": departed, "arrived": arrived}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HopMatcher:
        """Back from there."""
        matcher = cls()
        for edge, wire_bytes, node, count in content["departed"]:
            matcher._departed[edge].extend([(wire_bytes, node)] * count)
        for edge, node, count in content["arrived"]:
            matcher._arrived[edge].extend([node] * count)
        return matcher

    def arrive(self, edge: int, *, node: str) -> HopPath | None:
        """The receiver's side; the path, if that completes a hop."""
        if self._departed[edge]:
            wire_bytes, sender = self._departed[edge].popleft()
            return _path(wire_bytes, sender, node)
        self._arrived[edge].append(node)
        return None


class HopSums:
    """Sums of all edges.

    Args:
        num_edges: edges of the run, the one from the data among them.
    """

    def __init__(self, num_edges: int) -> None:
        self._edges = [EdgeSums(name=edge_name(edge)) for edge in range(num_edges)]
        self._matcher = HopMatcher()

    def record(self, report: WorkerReport) -> None:
        """Count the hops in and out of a worker."""
        for departure in report.departures:
            self.record_departure(departure, report.node)
        for arrival in report.arrivals:
            sums = self._edges[arrival.edge]
            sums.fetch_s += arrival.fetch_s
            sums.decode_s += arrival.decode_s
            sums.exposed_s += arrival.exposed_s
            if path := self._matcher.arrive(arrival.edge, node=report.node):
                sums.count(path)

    def record_departure(self, departure: Departure, node: str) -> None:
        """Count the sender's side of a hop."""
        sums = self._edges[departure.edge]
        sums.payload_bytes += departure.payload_bytes
        sums.wire_bytes += departure.wire_bytes
        sums.encode_s += departure.encode_s
        sums.put_s += departure.put_s
        if path := self._matcher.depart(departure.edge, wire_bytes=departure.wire_bytes, node=node):
            sums.count(path)

    def record_backpressure(self, edge: int, seconds: float) -> None:
        """Count seconds in which the sender of an edge stood idle for want of a credit."""
        self._edges[edge].backpressure_s += seconds

    def to_json(self) -> dict[str, Any]:
        """All sums, as numbers and lists."""
        return {"edges": [asdict(sums) for sums in self._edges], "matcher": self._matcher.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HopSums:
        """Back from there."""
        sums = cls(len(content["edges"]))
        sums._edges = [EdgeSums(**edge) for edge in content["edges"]]
        sums._matcher = HopMatcher.from_json(content["matcher"])
        return sums

    def copy(self) -> list[EdgeSums]:
        """A copy of the sums of each edge, the edge from the data first."""
        return [replace(sums) for sums in self._edges]


def _path(wire_bytes: int, sender: str, receiver: str) -> HopPath:
    if wire_bytes == 0:
        return "in_process"
    return "same_node" if sender == receiver else "cross_node"
