"""The sums of an edge, and how the two sides of a hop find each other.

The sender knows what it sent and the receiver how long it waited, and they tell it in different reports. Only both
together say that a hop is over and what it crossed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from distblock.messages import Arrival, Departure, WorkerReport
from distblock.metrics.histogram import Histogram

_Departed = tuple[int, str, float]
"""Wire bytes, node, seconds of encode and put."""

_Arrived = tuple[str, float]
"""Node, seconds of fetch and decode."""

HopPath = Literal["in_process", "same_node", "cross_node"]
"""What a hop crosses: nothing, the border between two processes of a node, or the network."""


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
        past_store_hops: those that came over a connection from worker to worker, past the object store.
        encode_in_turn_s, decode_in_turn_s: of encoding's and decoding's seconds, those that took their turn among what
            is computed.
        backpressure_s: seconds the sender stood idle for want of a credit.
    """

    name: str
    hops: int = 0
    in_process_hops: int = 0
    same_node_hops: int = 0
    cross_node_hops: int = 0
    past_store_hops: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    encode_s: float = 0.0
    put_s: float = 0.0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    exposed_s: float = 0.0
    encode_in_turn_s: float = 0.0
    decode_in_turn_s: float = 0.0
    backpressure_s: float = 0.0

    @property
    def overlapped_s(self) -> float:
        """Seconds of fetching and decoding hidden behind computing."""
        return self.fetch_s + self.decode_s - self.decode_in_turn_s - self.exposed_s

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


@dataclass(frozen=True, slots=True)
class Hop:
    """One that is over.

    Attributes:
        path: what it crossed.
        wire_bytes: that did.
        seconds: of its own work at both ends: encode and put, fetch and decode. What it waited for in between is not in
            it, so that no two hosts' clocks are compared.
    """

    path: HopPath
    wire_bytes: int
    seconds: float


@dataclass(kw_only=True, slots=True)
class SizeClass:
    """Hops of an edge whose wire bytes are between two powers of two, those within a process left out.

    Attributes:
        upto_bytes: the greater of these powers.
        wire_bytes: of all of them.
        seconds: of each, as in `Hop`.
    """

    upto_bytes: int
    wire_bytes: int = 0
    seconds: Histogram = field(default_factory=Histogram)

    def add(self, hop: Hop) -> None:
        """Count one."""
        self.wire_bytes += hop.wire_bytes
        self.seconds.add(hop.seconds)


class HopMatcher:
    """Joins the two sides of hops: the n-th departure and the n-th arrival told of an edge make one.

    Data workers may tell out of order, so a pair is not always the two sides of the same microbatch; but an edge has
    one receiver, or replicas that are told in the same order at both ends, so what is counted comes out the same, and
    so do sums of seconds.
    """

    def __init__(self) -> None:
        self._departed: dict[int, deque[_Departed]] = defaultdict(deque)
        self._arrived: dict[int, deque[_Arrived]] = defaultdict(deque)

    def depart(self, departure: Departure, *, node: str) -> Hop | None:
        """The sender's side; the hop, if that completes one."""
        side = (departure.wire_bytes, node, departure.encode_s + departure.put_s)
        if self._arrived[departure.edge]:
            return _hop(side, self._arrived[departure.edge].popleft())
        self._departed[departure.edge].append(side)
        return None

    def arrive(self, arrival: Arrival, *, node: str) -> Hop | None:
        """The receiver's side; the hop, if that completes one."""
        side = (node, arrival.fetch_s + arrival.decode_s)
        if self._departed[arrival.edge]:
            return _hop(self._departed[arrival.edge].popleft(), side)
        self._arrived[arrival.edge].append(side)
        return None

    def drop(self, edge: int) -> None:
        """A microbatch that has departed will not arrive."""
        if self._departed[edge]:
            self._departed[edge].popleft()

    def to_json(self) -> dict[str, Any]:
        """What waits for its other side: runs of equal ones."""
        return {
            name: [[edge, *each, len(list(run))] for edge, sides in waiting.items() for each, run in groupby(sides)]
            for name, waiting in (("departed", self._departed), ("arrived", self._arrived))
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HopMatcher:
        """Back from there."""
        matcher = cls()
        for edge, wire_bytes, node, seconds, count in content["departed"]:
            matcher._departed[edge].extend([(wire_bytes, node, seconds)] * count)
        for edge, node, seconds, count in content["arrived"]:
            matcher._arrived[edge].extend([(node, seconds)] * count)
        return matcher


class HopSums:
    """Sums of all edges.

    Args:
        num_edges: edges of the run, the one from the data among them.
    """

    def __init__(self, num_edges: int) -> None:
        self._edges = [EdgeSums(name=edge_name(edge)) for edge in range(num_edges)]
        self._sizes: list[dict[int, SizeClass]] = [{} for _ in range(num_edges)]
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
            sums.decode_in_turn_s += arrival.in_turn_s
            sums.past_store_hops += arrival.past_store
            self._count(arrival.edge, self._matcher.arrive(arrival, node=report.node))

    def record_departure(self, departure: Departure, node: str) -> None:
        """Count the sender's side of a hop."""
        sums = self._edges[departure.edge]
        sums.payload_bytes += departure.payload_bytes
        sums.wire_bytes += departure.wire_bytes
        sums.encode_s += departure.encode_s
        sums.encode_in_turn_s += departure.in_turn_s
        sums.put_s += departure.put_s
        self._count(departure.edge, self._matcher.depart(departure, node=node))

    def record_backpressure(self, edge: int, seconds: float) -> None:
        """Count seconds in which the sender of an edge stood idle for want of a credit."""
        self._edges[edge].backpressure_s += seconds

    def record_drop(self, edge: int) -> None:
        """A microbatch was dropped on its way."""
        self._matcher.drop(edge)

    def to_json(self) -> dict[str, Any]:
        """All sums, as numbers and lists."""
        return {
            "edges": [asdict(sums) for sums in self._edges],
            "sizes": [
                [[each.upto_bytes, each.wire_bytes, each.seconds.to_json()] for each in sizes.values()]
                for sizes in self._sizes
            ],
            "matcher": self._matcher.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HopSums:
        """Back from there."""
        sums = cls(len(content["edges"]))
        sums._edges = [EdgeSums(**edge) for edge in content["edges"]]
        for sizes, told in zip(sums._sizes, content["sizes"], strict=True):
            for upto_bytes, wire_bytes, seconds in told:
                found = Histogram.from_json(seconds)
                sizes[upto_bytes] = SizeClass(upto_bytes=upto_bytes, wire_bytes=wire_bytes, seconds=found)
        sums._matcher = HopMatcher.from_json(content["matcher"])
        return sums

    def copy(self) -> list[EdgeSums]:
        """A copy of the sums of each edge, the edge from the data first."""
        return [replace(sums) for sums in self._edges]

    def sizes(self, edge: int) -> list[SizeClass]:
        """The hops of an edge by size, the smallest first."""
        return [each for _, each in sorted(self._sizes[edge].items())]

    def _count(self, edge: int, hop: Hop | None) -> None:
        if hop is None:
            return
        self._edges[edge].count(hop.path)
        if hop.path != "in_process":
            upto_bytes = 1 << (hop.wire_bytes - 1).bit_length()
            self._sizes[edge].setdefault(upto_bytes, SizeClass(upto_bytes=upto_bytes)).add(hop)


def _hop(departed: _Departed, arrived: _Arrived) -> Hop:
    (wire_bytes, sender, sent_s), (receiver, fetched_s) = departed, arrived
    path: HopPath = "in_process"
    if wire_bytes:
        path = "same_node" if sender == receiver else "cross_node"
    return Hop(path, wire_bytes, sent_s + fetched_s)
