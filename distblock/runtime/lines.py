"""The lines between a run's nodes: which edges take which, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distblock.messages import Line
from distblock.metrics.hops import edge_name
from distblock.runtime.interfaces import Interface
from distblock.runtime.nodes import Node

SLOW = 0.1
"""Of the fastest line of the run: below this share, a line is told apart."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two nodes, in the direction in which activations go."""

    sender: Node
    receiver: Node


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found between two nodes.

    Attributes:
        sender, receiver: each one's interface to the other.
        rate_bytes_per_s: of a transfer; None: there was none.
        problem: why not.
    """

    sender: Interface
    receiver: Interface
    rate_bytes_per_s: float | None
    problem: str | None = None


def crossings(stages: Sequence[int], rows: Sequence[Sequence[Node]], feeders: Sequence[Node]) -> dict[int, list[Pair]]:
    """The pairs of nodes that each edge crosses, in order; edges within one host are left out.

    Args:
        stages: the first stage of each worker of a row.
        rows: the node of each worker, in each row of workers that hand activations on to one another.
        feeders: of each data worker; all of them feed every row.
    """
    pairs = {stages[0]: [Pair(sender=feeder, receiver=row[0]) for feeder in feeders for row in rows]}
    for place, stage in enumerate(stages[1:], start=1):
        pairs[stage] = [Pair(sender=row[place - 1], receiver=row[place]) for row in rows]
    crossed = {
        edge: list(dict.fromkeys(pair for pair in of if pair.sender.address != pair.receiver.address))
        for edge, of in pairs.items()
    }
    return {edge: of for edge, of in crossed.items() if of}


def edge_lines(crossed: Mapping[int, Sequence[Pair]], measured: Mapping[Pair, Measured]) -> tuple[Line, ...]:
    """A line for each edge that crosses any: of several, the slowest that could be measured."""
    return tuple(
        _line(edge, min(pairs, key=lambda pair: measured[pair].rate_bytes_per_s or float("inf")), measured)
        for edge, pairs in crossed.items()
    )


def describe(pair: Pair, measured: Measured, edges: Sequence[int]) -> str:
    """A line in one line."""
    rate = f"no rate measured ({measured.problem})"
    if measured.rate_bytes_per_s is not None:
        rate = f"{bit_rate(measured.rate_bytes_per_s)} measured"
    names = ", ".join(edge_name(edge) for edge in edges)
    sender, receiver = _end(pair.sender, measured.sender), _end(pair.receiver, measured.receiver)
    return f"network {sender} -> {receiver}: {rate}; edge{'s' * (len(edges) > 1)} {names}"


def warnings(crossed: Mapping[int, Sequence[Pair]], measured: Mapping[Pair, Measured]) -> list[str]:
    """What is likely to be a fault: lines that leave no host, and lines far slower than others."""
    said = []
    rates = {pair: each.rate_bytes_per_s for pair, each in measured.items() if each.rate_bytes_per_s is not None}
    fastest = max(rates.values(), default=0.0)
    for pair, found in measured.items():
        where = f"{pair.sender} -> {pair.receiver}, edge {', '.join(map(edge_name, edges_of(pair, crossed)))}"
        loopback = next((end.name for end in (found.sender, found.receiver) if end.is_loopback), None)
        if loopback is not None and pair.sender.hostname != pair.receiver.hostname:
            said.append(f"warning: network {where}: {loopback} is a loopback interface, but these are two hosts")
        if pair in rates and rates[pair] < SLOW * fastest:
            said.append(
                f"warning: network {where}: {bit_rate(rates[pair])}, where another edge has {bit_rate(fastest)}; see"
                " whether it takes the network card that it is meant to"
            )
    return said


def edges_of(pair: Pair, crossed: Mapping[int, Sequence[Pair]]) -> list[int]:
    """The edges that take a line."""
    return [edge for edge, pairs in crossed.items() if pair in pairs]


def bit_rate(bytes_per_s: float) -> str:
    """``12_500_000`` as ``100 Mbit/s``, as networks are sold."""
    bits = 8 * bytes_per_s
    for limit, factor, unit in ((999.5e3, 1e3, "kbit/s"), (999.5e6, 1e6, "Mbit/s")):
        if bits < limit:
            return f"{bits / factor:.3g} {unit}"
    return f"{bits / 1e9:.3g} Gbit/s"


def _line(edge: int, pair: Pair, measured: Mapping[Pair, Measured]) -> Line:
    found = measured[pair]
    return Line(
        edge=edge,
        sender=pair.sender.address,
        receiver=pair.receiver.address,
        sender_interface=found.sender.name,
        receiver_interface=found.receiver.name,
        sender_speed_bytes_per_s=found.sender.speed_bytes_per_s,
        receiver_speed_bytes_per_s=found.receiver.speed_bytes_per_s,
        rate_bytes_per_s=found.rate_bytes_per_s,
    )


def _end(node: Node, interface: Interface) -> str:
    speed = "" if interface.speed_bytes_per_s is None else f", {bit_rate(interface.speed_bytes_per_s)}"
    return f"{node.address} ({interface.name or 'no interface'}{speed})"
