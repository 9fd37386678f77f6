"""Before any worker of a run on several nodes: each node proves what it sees, and the lines between them are measured.

The usual answer is to let workers find out: one that sees an empty folder instead of the data fails in the middle of
its start, in its own words, without saying where; a run whose storage is a disk of one host trains for hours before
that matters; and the wrong network card is never noticed, only slow. So a `Scout` on each node looks first. A run on
the driver's node alone has nothing to prove. One that goes on after a node's death has other nodes: they prove it too.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup

from distblock.config import DataConfig
from distblock.data.listing import list_files
from distblock.learning.allocator import jemalloc_here
from distblock.messages import Line
from distblock.runtime.crew import Job
from distblock.runtime.interfaces import Interface
from distblock.runtime.lines import Measured, Pair, crossings, describe, edge_lines, edges_of, warnings
from distblock.runtime.nodes import Node, nodes_of
from distblock.runtime.placement import rows
from distblock.runtime.reach import Storage, data_refusal, packed, storage_refusal, token
from distblock.runtime.scout import Received
from distblock.runtime.scouts import Scouts
from distblock.runtime.transfers import CONNECT_S, TRANSFER_S, Door

STORAGE_S = 60.0
"""Seconds in which every node has to see the storage: a mount that hangs would hold a run up for ever."""

DATA_S = 600.0
"""Seconds in which every data worker's node has to list the data: there may be millions of files."""

ANSWER_S = CONNECT_S + 2 * TRANSFER_S + 10.0
"""Seconds in which both ends of a transfer have to come to an end; without it, the line has no rate."""

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found.

    Attributes:
        lines: one for each edge that lies between two hosts.
        jemalloc: its path, which is the same on all nodes; None: not all have it.
    """

    lines: tuple[Line, ...] = ()
    jemalloc: str | None


def preflight(job: Job, group: PlacementGroup, *, note: Note) -> Seen:
    """Let every node of a run prove that it sees storage and data, and measure the lines between them.

    Args:
        job: the run.
        group: its placement group: a bundle a worker, or a row of them, then a bundle a data worker.
        note: is told what each line carries, and whom is waited for.

    Raises:
        InputError: a node does not see the storage, or the data.
        StorageError: the driver cannot write to the storage.
        AttemptLostError: a node has gone meanwhile.
    """
    nodes = nodes_of(group)
    here = ray.get_runtime_context().get_node_id()
    if all(node.node_id == here for node in nodes):
        return Seen(jemalloc=jemalloc_here())
    num_feeders = job.hosts[0].config.data.workers
    workers, feeders = nodes[:-num_feeders], nodes[-num_feeders:]
    with Scouts(nodes, note=note) as scouts:
        if job.storage is not None:
            _prove_storage(job.storage, scouts, note=note)
        if job.dataset is None:
            _prove_data(job.hosts[0].config.data, scouts, feeders)
        placed = rows(workers, length=len(job.hosts), count=job.hosts[0].config.replicas)
        crossed = crossings([spec.stages.start for spec in job.hosts], placed, feeders)
        return Seen(lines=_measure(crossed, scouts, note=note), jemalloc=shared_jemalloc(scouts, note=note))


def _prove_storage(storage: Storage, scouts: Scouts, *, note: Note) -> None:
    pickled = packed(storage)
    with token(storage, note=note) as expected:
        found = scouts.ask(
            scouts.nodes,
            lambda scout: scout.see_storage.remote(pickled, expected),
            what=storage.location,
            limit_s=STORAGE_S,
        )
    wrong = {str(node): got for node, got in found.items() if got is not None}
    if wrong:
        raise storage_refusal(storage, wrong, driver=_here())


def _prove_data(config: DataConfig, scouts: Scouts, nodes: Sequence[Node]) -> None:
    expected = list_files(config)
    if expected is None:
        return
    found = scouts.ask(nodes, lambda scout: scout.see_data.remote(config), what=expected.where, limit_s=DATA_S)
    for node, got in found.items():
        refusal = data_refusal(expected, got, node=str(node), driver=_here())
        if refusal is not None:
            raise refusal


def shared_jemalloc(scouts: Scouts, *, note: Note) -> str | None:
    """Where all nodes have it; None: some have it elsewhere, or not at all."""
    path = jemalloc_here()
    if path is None:
        return None
    found = scouts.ask(scouts.nodes, lambda scout: scout.jemalloc.remote(), what="the allocator", limit_s=STORAGE_S)
    without = [str(node) for node, answer in found.items() if answer != path]
    if without:
        note(f"workers keep glibc's allocator, which takes more memory: {path} is not what {without[0]} would take")
    return None if without else path


def _measure(crossed: Mapping[int, Sequence[Pair]], scouts: Scouts, *, note: Note) -> tuple[Line, ...]:
    """One pair after the other: they may share a cable."""
    measured: dict[Pair, Measured] = {}
    for pair in dict.fromkeys(pair for pairs in crossed.values() for pair in pairs):
        measured[pair] = _measure_pair(pair, scouts)
        note(describe(pair, measured[pair], edges_of(pair, crossed)))
    for warning in warnings(crossed, measured):
        note(warning)
    return edge_lines(crossed, measured)


def _measure_pair(pair: Pair, scouts: Scouts) -> Measured:
    sender, receiver = scouts.of(pair.sender), scouts.of(pair.receiver)
    leaving: Interface = scouts.get(pair.sender, sender.interface_to.remote(pair.receiver.address))
    arriving: Interface = scouts.get(pair.receiver, receiver.interface_to.remote(pair.sender.address))
    received = _transfer(pair, scouts)
    return Measured(sender=leaving, receiver=arriving, rate_bytes_per_s=received.bytes_per_s, problem=received.problem)


def _transfer(pair: Pair, scouts: Scouts) -> Received:
    """A firewall may let Ray's ports through and no others: then there is no rate, and the run goes on."""
    door: Door | str = scouts.get(pair.sender, scouts.of(pair.sender).listen.remote())
    if isinstance(door, str):
        return Received(bytes_per_s=None, problem=door)
    sending = scouts.of(pair.sender).send.remote()
    receiving = scouts.of(pair.receiver).receive.remote(door)
    try:
        received: Received = scouts.get(pair.receiver, receiving, timeout_s=ANSWER_S)
        scouts.get(pair.sender, sending, timeout_s=ANSWER_S)
    except GetTimeoutError:
        return Received(bytes_per_s=None, problem=f"no end within {ANSWER_S:g} s")
    return received


def _here() -> str:
    return f"{ray.util.get_node_ip_address()} ({socket.gethostname()})"
