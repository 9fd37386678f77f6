"""Rounds: in each, every size by every way, in turn, so that all see the same machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import ray

from distblock.bench.hops.relay import TRANSPORTS, Hop, Relay, Way
from distblock.bench.hops.streams import Ask, Value, stream
from distblock.config import make_config
from distblock.errors import InputError
from distblock.learning.allocator import jemalloc_here, keeping_memory
from distblock.runtime.cluster import joined, placed
from distblock.runtime.crew import num_threads
from distblock.runtime.seats import Actor

BYTES = 2**28
"""What crosses at most by one way in one round, where that allows two hops, and in one call."""

LINE_S = 2.0
"""Seconds in which a line would carry what crosses at most, where that is less."""

MOST_HOPS = 50
"""One after the other, of one size by one way in one round."""

LANES = 8
"""Of a stream; fewer where their activations come to more than `AT_ONCE_BYTES`."""

AT_ONCE_BYTES = 2**26

MOST_CALLS = 200
"""Of a stream."""

CPUS = 1.0
"""Of each actor."""


@dataclass(frozen=True, kw_only=True)
class SizeRound:
    """One size in one round.

    Attributes:
        hops: by way, one after the other.
        hops_s: seconds of each of them at the driver, from asking for the call to its report.
        fresh_s, again_s: of memcpy into fresh shared memory, and again.
        numpy_s: of ``ray.put`` of an array.
        streamed_s: of a hop in a stream, wall time over hops, by way and by the number of microbatches in a call;
            without those whose calls would be too large.
    """

    hops: dict[Way, list[Hop]]
    hops_s: dict[Way, list[float]]
    fresh_s: list[float]
    again_s: list[float]
    numpy_s: list[float]
    streamed_s: dict[Way, dict[int, float]]


@dataclass(frozen=True, kw_only=True)
class Round:
    """All sizes in one round.

    Attributes:
        sizes: by bytes of the activation.
        call_s: seconds of empty calls, one after the other, at the driver.
        streamed_call_s: of an empty call in a stream: wall time over calls.
    """

    sizes: dict[int, SizeRound]
    call_s: list[float]
    streamed_call_s: float


@contextmanager
def relays(address: str | None, *, apart: bool, keep_memory: bool = False) -> Iterator[list[Actor]]:
    """Two of them, on one node or on two.

    Args:
        address: of the cluster; None: an embedded one.
        apart: on two nodes.
        keep_memory: with the allocator of distblock's workers, instead of the one that Ray's actors have.

    Raises:
        InputError: there is no cluster at the address, or it does not have the nodes.
    """
    strategy = "STRICT_SPREAD" if apart else "STRICT_PACK"
    config = make_config({"address": address, "resources": {"strategy": strategy}})
    needed = [{"CPU": CPUS}] * 2
    with joined(config, needed), placed(needed, strategy=strategy, note=print) as group:
        # What others have set for themselves must not change Ray's plain way.
        plain = {"RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "0"}
        allocator = keeping_memory(jemalloc_here()) if keep_memory else {}
        actors: list[Actor] = [
            ray.remote(Relay)
            .options(
                num_cpus=CPUS,
                max_concurrency=num_threads(config),
                runtime_env={"env_vars": {**allocator, **plain}},
                placement_group=group,
                placement_group_bundle_index=bundle,
            )
            .remote()
            for bundle in range(2)
        ]
        try:
            nodes = ray.get([actor.make.remote(0) for actor in actors])
            if (nodes[0] != nodes[1]) != apart:
                raise InputError(f"bench hop: expected workers {'apart' if apart else 'on one node'}, got {nodes}")
            yield actors
        finally:
            for actor in actors:
                ray.kill(actor)


def measure(
    actors: Sequence[Actor], sizes: Sequence[int], *, rounds: int, per_call: Sequence[int], line_rate: float | None
) -> list[Round]:
    """So many rounds, after one that does not count: memory is mapped in it, and connections are made.

    Args:
        actors: as `relays` gives them.
        sizes: bytes of activations.
        rounds: how many.
        per_call: numbers of microbatches in a call, in streams.
        line_rate: bytes a second between the actors; None: on one node, or not known.
    """
    most_bytes = BYTES if line_rate is None else min(BYTES, int(line_rate * LINE_S))
    return [_round(actors, sizes, per_call, most_bytes) for _ in range(rounds + 1)][1:]


def _round(actors: Sequence[Actor], sizes: Sequence[int], per_call: Sequence[int], most_bytes: int) -> Round:
    return Round(
        sizes={size: _size(actors, size, per_call, most_bytes) for size in sizes},
        call_s=stream(_empty(actors), lanes=1, calls=MOST_HOPS).calls_s,
        streamed_call_s=stream(_empty(actors), lanes=LANES, calls=MOST_CALLS).wall_s / MOST_CALLS,
    )


def _size(actors: Sequence[Actor], size: int, per_call: Sequence[int], most_bytes: int) -> SizeRound:
    ray.get([actor.make.remote(size) for actor in actors])
    count = min(MOST_HOPS, max(2, most_bytes // size))
    streams = {way: stream(_hop(actors, way, 1), lanes=1, calls=count) for way in get_args(Way)}
    few = max(2, count // 5)
    copies = [ray.get(actors[turn % 2].copy.remote()) for turn in range(few)]
    numbers = [number for number in per_call if number == 1 or number * size <= BYTES]
    return SizeRound(
        hops={way: streamed.reports for way, streamed in streams.items()},
        hops_s={way: streamed.calls_s for way, streamed in streams.items()},
        fresh_s=[fresh_s for fresh_s, _ in copies],
        again_s=[again_s for _, again_s in copies],
        numpy_s=[ray.get(actors[turn % 2].put.remote()) for turn in range(few)],
        streamed_s={
            way: {number: _streamed_s(actors, way, size, number, most_bytes) for number in numbers}
            for way in TRANSPORTS
        },
    )


def _streamed_s(actors: Sequence[Actor], way: Way, size: int, per_call: int, most_bytes: int) -> float:
    lanes = min(LANES, max(1, AT_ONCE_BYTES // (size * per_call)))
    calls = min(MOST_CALLS, max(2, most_bytes // (size * per_call)))
    streamed = stream(_hop(actors, way, per_call), lanes=lanes, calls=calls)
    return streamed.wall_s / (calls * per_call)


def _hop(actors: Sequence[Actor], way: Way, per_call: int) -> Ask:
    def ask(turn: int, entering: Value, reports: tuple[Hop, ...]) -> tuple[Value, Any]:
        offer = reports[0].offer if reports else None
        *leaving, report = actors[turn % 2].hop.options(num_returns=2).remote(list(entering), way, per_call, offer)
        return leaving, report

    return ask


def _empty(actors: Sequence[Actor]) -> Ask:
    def ask(turn: int, _: Value, __: tuple[Any, ...]) -> tuple[Value, Any]:
        return (), actors[turn % 2].nothing.remote()

    return ask
