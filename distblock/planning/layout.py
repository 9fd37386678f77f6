"""The partition and placement with the highest throughput, by dynamic programming.

A pipeline goes at the pace of its slowest part: a worker's computing, a link, the data, or the cores that several
workers of one node share. For a pace that no part may exceed, dynamic programming over the blocks finds the layout that
computes least in all (each stage has a classifier of its own, so more stages compute more); the pace is then the
smallest for which the cores suffice, found by bisection.

Source: PipeDream's partitioner, Narayanan et al. 2019, doi:10.1145/3341301.3359646, section 3.1, for stages that pass
nothing back, and with codecs, memory and unequal workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from distblock.config import Codec
from distblock.errors import InputError
from distblock.planning.profile import Profile

IN_FLIGHT = 4
"""Outputs that a worker has in memory while they cross."""

ALLOCATED = 1.7
"""Memory that a step takes for a byte that it keeps: convolutions' own, and what an allocator leaves between tensors.
ResNet-8 and ResNet-20, batches of 32 to 256, by the growth of workers' processes on a CPU."""

MOST_ORDERS = 720
"""Orders of unequal workers that are tried; of more, the one by speed alone."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A worker that there may be.

    Attributes:
        node: where; workers of one node share its cores.
        speed: of its computing, as a multiple of that of the machine that was profiled.
        memory_bytes: that it may take; infinite: any.
    """

    node: str = "here"
    speed: float = 1.0
    memory_bytes: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the workers have around them.

    Attributes:
        cores: of each node.
        link_bytes_per_s: between two nodes.
        memcpy_bytes_per_s: within one.
        base_bytes: of a worker's process without stages.
        call_s: processor seconds that a worker and the driver spend on each call, beside computing.
        data_s: processor seconds in which a microbatch is read.
    """

    cores: int
    link_bytes_per_s: float
    memcpy_bytes_per_s: float
    base_bytes: float = 0.0
    call_s: float = 0.0
    data_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One worker's part of a plan.

    Attributes:
        blocks: of its stage.
        seat: which worker.
        codec: of what enters it; fp32 for the images.
        compute_s: of a microbatch, codecs included, on its own core.
        link_s: in which the link before it carries a microbatch.
        wire_bytes: of a microbatch on that link.
        memory_bytes: that it takes at most.
    """

    blocks: range
    seat: Seat
    codec: Codec
    compute_s: float
    link_s: float
    wire_bytes: float
    memory_bytes: float

    @property
    def memory_share(self) -> float:
        """Of what its worker may take."""
        return self.memory_bytes / self.seat.memory_bytes


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """A stage that was tried.

    Attributes:
        step_s: of one of its workers' share of a microbatch: processor seconds on a CPU with one thread, else wall.
        memory_bytes: by which its process grew, with as many outputs as are in flight; on a GPU, allocated there.
    """

    step_s: float
    memory_bytes: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A layout.

    Attributes:
        pieces: one a worker, in the order of the stream.
        pace_s: seconds a microbatch, of its slowest part.
        slowest: that part, in words.
        num_samples: of a microbatch.
    """

    pieces: tuple[Piece, ...]
    pace_s: float
    slowest: str
    num_samples: int

    @property
    def cuts(self) -> tuple[int, ...]:
        """Each stage's first block, from the second stage on."""
        return tuple(piece.blocks.start for piece in self.pieces[1:])

    @property
    def memory_share(self) -> float:
        """Of the worker that has least to spare."""
        return max(piece.memory_share for piece in self.pieces)

    @property
    def fits(self) -> bool:
        """No worker takes more than it may."""
        return self.memory_share <= 1

    @property
    def samples_per_s(self) -> float:
        """That its pace allows."""
        return self.num_samples / self.pace_s


class Planner:
    """Plans for one network, as it was profiled.

    Args:
        profile: of the network.
        around: of the workers.
        codecs: that an edge may have, the preferred one first.
        replicas: workers that share each stage; each takes its share of every microbatch.
    """

    def __init__(self, profile: Profile, around: Surroundings, *, codecs: Sequence[Codec], replicas: int = 1) -> None:
        self._profile = profile
        self._around = around
        self._codecs = tuple(codecs)
        self._replicas = replicas
        blocks = profile.blocks
        self._inner_s = [0.0]
        self._kept_bytes, self._state_bytes = [0.0], [0.0]
        for block in blocks:
            self._inner_s.append(self._inner_s[-1] + block.inner_s)
            self._kept_bytes.append(self._kept_bytes[-1] + block.saved_bytes)
            self._state_bytes.append(self._state_bytes[-1] + block.state_bytes)

    @property
    def num_blocks(self) -> int:
        """Of the network."""
        return len(self._profile.blocks)

    @property
    def cores(self) -> int:
        """Of each node."""
        return self._around.cores

    def best(self, seats: Sequence[Seat]) -> Plan:
        """The best one that uses some of the workers, or all; as for `by_count`."""
        return quickest(self.by_count(seats).values())

    def by_count(self, seats: Sequence[Seat]) -> dict[int, Plan]:
        """The best one of each number of workers that fits into their memory.

        Raises:
            InputError: none fits; the message has the numbers.
        """
        found: dict[int, Plan] = {}
        for count in range(1, min(len(seats), self.num_blocks) + 1):
            plans = [plan for order in _orders(seats, count) if (plan := self._best_of(order)) is not None]
            if plans:
                found[count] = min(plans, key=lambda plan: plan.pace_s)
        if not found:
            raise InputError(self._why_none_fits(seats))
        return found

    def of_cuts(self, cuts: Sequence[int], seats: Sequence[Seat]) -> Plan:
        """A plan of given cuts, each edge with its best codec, whether or not it fits."""
        bounds = [0, *cuts, self.num_blocks]
        pieces: list[Piece] = []
        for place, seat in enumerate(seats):
            blocks = range(bounds[place], bounds[place + 1])
            before = pieces[-1].seat if pieces else None
            is_last = place == len(seats) - 1
            offered = [self._piece(blocks, seat, before, codec, is_last=is_last) for codec in self._codecs_of(before)]
            pieces.append(min(offered, key=lambda piece: (max(piece.compute_s, piece.link_s), piece.compute_s)))
        return self._plan(pieces)

    def as_rehearsed(self, plan: Plan, rehearsed: Sequence[Rehearsed]) -> Plan:
        """A plan with what its stages took when they were tried, instead of sums over their blocks."""
        share = 1 / self._replicas
        return self._plan(
            [
                replace(
                    piece,
                    compute_s=piece.compute_s + (each.step_s - share * self.step_s(piece.blocks)) / piece.seat.speed,
                    memory_bytes=self._around.base_bytes
                    + each.memory_bytes
                    + self._decoded_bytes(piece.blocks, piece.codec),
                )
                for piece, each in zip(plan.pieces, rehearsed, strict=True)
            ]
        )

    def _decoded_bytes(self, blocks: range, codec: Codec) -> float:
        """What enters lies in the object store, but what a codec makes of it does not."""
        if codec == "fp32":
            return 0.0
        return IN_FLIGHT * self._profile.blocks[blocks.start - 1].leaving_bytes / self._replicas

    def _best_of(self, order: Sequence[Seat]) -> Plan | None:
        """With these workers in this order: the smallest pace at which everything keeps up."""
        paces = sorted({pace for pace in self._paces(order) if pace > 0})
        best: Plan | None = None
        low, high = 0, len(paces) - 1
        while low <= high:
            middle = (low + high) // 2
            pieces = self._least(order, paces[middle] * (1 + 1e-12))
            if pieces is None:
                low = middle + 1
                continue
            plan = self._plan(pieces)
            best = plan if best is None or plan.pace_s < best.pace_s else best
            # A larger pace leaves more freedom to compute less in all: worth it while the cores are what is short.
            if plan.pace_s > paces[middle] * (1 + 1e-9):
                low = middle + 1
            else:
                high = middle - 1
        return best

    def _paces(self, order: Sequence[Seat]) -> Iterator[float]:
        """All that some piece may take."""
        for place, seat in enumerate(order):
            before = order[place - 1] if place else None
            for start in range(self.num_blocks) if place else [0]:
                for stop in range(start + 1, self.num_blocks + 1):
                    for codec in self._codecs_of(before):
                        piece = self._piece(range(start, stop), seat, before, codec, is_last=stop == self.num_blocks)
                        yield piece.compute_s
                        yield piece.link_s

    def _least(self, order: Sequence[Seat], pace_s: float) -> list[Piece] | None:
        """The pieces that compute least in all, none of them slower than the pace and none too large."""
        count, num_blocks = len(order), self.num_blocks
        # The least seconds with which the first blocks are computed by the first workers, and the last piece of it.
        least: list[dict[int, tuple[float, Piece | None]]] = [{0: (0.0, None)}]
        for place, seat in enumerate(order):
            row: dict[int, tuple[float, Piece | None]] = {}
            before = order[place - 1] if place else None
            for start, (so_far_s, _) in least[-1].items():
                last_stop = num_blocks - (count - place - 1)
                stops = [num_blocks] if place == count - 1 else range(start + 1, last_stop + 1)
                for stop in stops:
                    piece = self._cheapest(range(start, stop), seat, before, pace_s, is_last=stop == num_blocks)
                    if piece is None:
                        continue
                    total_s = so_far_s + piece.compute_s
                    if stop not in row or total_s < row[stop][0]:
                        row[stop] = total_s, piece
            least.append(row)
        if num_blocks not in least[-1]:
            return None
        pieces: list[Piece] = []
        stop = num_blocks
        for row in reversed(least[1:]):
            piece = row[stop][1]
            assert piece is not None
            pieces.append(piece)
            stop = piece.blocks.start
        return pieces[::-1]

    def _cheapest(
        self, blocks: range, seat: Seat, before: Seat | None, pace_s: float, *, is_last: bool
    ) -> Piece | None:
        """The first codec that keeps the pace and fits; None: none does."""
        if not blocks:
            return None
        for codec in self._codecs_of(before):
            piece = self._piece(blocks, seat, before, codec, is_last=is_last)
            if max(piece.compute_s, piece.link_s) <= pace_s and piece.memory_bytes <= seat.memory_bytes:
                return piece
        return None

    def _codecs_of(self, before: Seat | None) -> tuple[Codec, ...]:
        return self._codecs if before is not None else ("fp32",)

    def _piece(self, blocks: range, seat: Seat, before: Seat | None, codec: Codec, *, is_last: bool) -> Piece:
        profile, around = self._profile, self._around
        entering = profile.blocks[blocks.start - 1].leaving_bytes if blocks.start else profile.entering_bytes
        leaving = 0 if is_last else profile.blocks[blocks.stop - 1].leaving_bytes
        own = profile.codecs[codec] if blocks.start else None
        wire = entering if own is None else entering * own.share
        # What the sender spends on encoding is reckoned at the receiver's edge, whose codec is being chosen.
        codec_s = 0.0 if own is None else (own.encode_s + own.decode_s) * entering
        compute_s = self.step_s(blocks) + codec_s
        is_near = before is None or before.node == seat.node
        rate = around.memcpy_bytes_per_s if is_near else around.link_bytes_per_s
        share = 1 / self._replicas
        return Piece(
            blocks=blocks,
            seat=seat,
            codec=codec,
            compute_s=share * compute_s / seat.speed + around.call_s,
            link_s=share * wire / rate,
            wire_bytes=wire,
            memory_bytes=self._memory_bytes(blocks, leaving) + self._decoded_bytes(blocks, codec),
        )

    def step_s(self, blocks: range) -> float:
        """Of a stage of these blocks, a microbatch, on the machine that was profiled."""
        own = self._profile.blocks
        rest = self._inner_s[blocks.stop] - self._inner_s[blocks.start + 1]
        return own[blocks.start].first_s + rest + own[blocks.stop - 1].classifier_s

    def _memory_bytes(self, blocks: range, leaving: float) -> float:
        own, last = self._profile.blocks, self._profile.blocks[blocks.stop - 1]
        state = self._state_bytes[blocks.stop] - self._state_bytes[blocks.start] + last.classifier_state_bytes
        kept = self._kept_bytes[blocks.stop] - self._kept_bytes[blocks.start] + last.classifier_saved_bytes
        # In the pass backward the gradients of one block's outputs are there beside what is kept.
        passing = 2 * max(own[block].leaving_bytes for block in blocks)
        moving = IN_FLIGHT * leaving
        return self._around.base_bytes + state + (ALLOCATED * (kept + passing) + moving) / self._replicas

    def _plan(self, pieces: Sequence[Piece]) -> Plan:
        around = self._around
        paces = {
            f"worker {place}, blocks {piece.blocks.start} to {piece.blocks.stop - 1}": piece.compute_s
            for place, piece in enumerate(pieces)
        }
        paces |= {f"the link into worker {place}": piece.link_s for place, piece in enumerate(pieces) if piece.link_s}
        paces["reading the data"] = around.data_s
        # Data are read, and calls are made, beside the first worker.
        busy = {pieces[0].seat.node: around.data_s + around.call_s * (len(pieces) + 1)}
        for piece in pieces:
            busy[piece.seat.node] = busy.get(piece.seat.node, 0.0) + self._replicas * piece.compute_s
        paces |= {f"the cores of node {node}": seconds / around.cores for node, seconds in busy.items()}
        slowest = max(paces, key=paces.__getitem__)
        return Plan(pieces=tuple(pieces), pace_s=paces[slowest], slowest=slowest, num_samples=self._profile.num_samples)

    def _why_none_fits(self, seats: Sequence[Seat]) -> str:
        alone = [self._memory_bytes(range(b, b + 1), own.leaving_bytes) for b, own in enumerate(self._profile.blocks)]
        count, most = min(len(seats), self.num_blocks), max(seat.memory_bytes for seat in seats)
        return (
            f"plan: expected a layout over at most {count} workers of {most / 1e6:,.0f} MB, but none fits: a block"
            f" alone takes {min(alone) / 1e6:,.0f} to {max(alone) / 1e6:,.0f} MB,"
            f" {self._around.base_bytes / 1e6:,.0f} MB of it the process; take more workers, more memory or smaller"
            " microbatches (--data.microbatch-size)"
        )


def quickest(plans: Iterable[Plan]) -> Plan:
    """The one with the highest throughput; of equal ones that with the fewest workers."""
    return min(plans, key=lambda plan: (plan.pace_s, len(plan.pieces)))


def _orders(seats: Sequence[Seat], count: int) -> Iterator[tuple[Seat, ...]]:
    """The different ways to take so many workers in a row; equal ones are not told apart."""
    if len(set(seats)) == 1:
        yield tuple(seats[:count])
        return
    if math.perm(len(seats), count) > MOST_ORDERS:
        yield tuple(sorted(seats, key=lambda seat: -seat.speed)[:count])
        return
    yield from dict.fromkeys(permutations(seats, count))
