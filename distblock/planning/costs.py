"""What a layout takes: seconds and bytes of each worker's part, and the pace of them all together, as they add up from
what was measured of single blocks.

A pipeline goes at the pace of its slowest part: a worker's computing, a link, the data, a codec, the driver's calls, or
the cores that all processes of one node share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

from distblock.config import ChannelConfig, Codec
from distblock.planning.layout import Piece, Plan, Rehearsed, Seat, Surroundings
from distblock.planning.profile import Profile

MARGIN = 0.01
"""By which other codecs have to make a plan quicker to be taken before the preferred ones."""

IN_FLIGHT = 4
"""Calls whose inputs a worker has decoded ahead, unless their codec has to see them in order."""


class Costs:
    """Of one network, as it was profiled.

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
    def around(self) -> Surroundings:
        """What the workers have around them."""
        return self._around

    def offered(self, blocks: range, seat: Seat, before: Seat | None) -> Iterator[Piece]:
        """A worker's part with each codec that may enter it, the preferred one first, whether or not it fits.

        Args:
            blocks: of its stage.
            seat: the worker.
            before: the one before it; None: it is the first.
        """
        codecs: tuple[Codec, ...] = self._codecs if before is not None else ("fp32",)
        return (self._piece(blocks, seat, before, codec) for codec in codecs)

    def _piece(self, blocks: range, seat: Seat, before: Seat | None, codec: Codec) -> Piece:
        profile, around = self._profile, self._around
        entering = profile.blocks[blocks.start - 1].leaving_bytes if blocks.start else profile.entering_bytes
        own = profile.codecs[codec] if blocks.start else None
        wire = entering if own is None else entering * own.share
        share = 1 / self._replicas
        encode_s = 0.0 if own is None or before is None else share * own.encode_s * entering / before.speed
        decode_s = 0.0 if own is None else share * own.decode_s * entering / seat.speed
        # On a GPU codecs compute on what its stages do.
        takes_turn = before is not None and (codec in ChannelConfig.REMEMBERING or not around.threads)
        is_near = before is None or before.node == seat.node
        rate = around.memcpy_bytes_per_s if is_near else around.link_bytes_per_s
        # At no size at all: within a node, too.
        arriving = 0.0 if is_near and around.past_store_bytes else self._arriving_bytes(wire, codec)
        return Piece(
            blocks=blocks,
            seat=seat,
            codec=codec,
            compute_s=share * self.step_s(blocks) / seat.speed + around.call_s + (decode_s if takes_turn else 0.0),
            link_s=share * wire / rate,
            wire_bytes=wire,
            memory_bytes=self._memory_bytes(blocks) + self._crossing_bytes(blocks, codec) + arriving,
            arriving_bytes=arriving,
            kept_bytes=self._kept_bytes_of(blocks, codec),
            encode_s=0.0 if takes_turn else encode_s,
            decode_s=0.0 if takes_turn else decode_s,
            takes_turn=takes_turn,
            turn_s=encode_s if takes_turn else 0.0,
        )

    def step_s(self, blocks: range) -> float:
        """Of a stage of these blocks, a microbatch, on the machine that was profiled."""
        own = self._profile.blocks
        rest = self._inner_s[blocks.stop] - self._inner_s[blocks.start + 1]
        return own[blocks.start].first_s + rest + own[blocks.stop - 1].classifier_s

    def plan(self, pieces: Sequence[Piece]) -> Plan:
        """Of these parts, one a worker."""
        around = self._around
        pieces = tuple(
            replace(
                piece,
                compute_s=piece.compute_s + (0.0 if sent is None else sent.turn_s),
                memory_bytes=self.whole_bytes(piece, sent),
            )
            for piece, sent in zip_longest(pieces, pieces[1:])
        )
        paces = {
            f"worker {place}, blocks {piece.blocks.start} to {piece.blocks.stop - 1}": piece.compute_s
            for place, piece in enumerate(pieces)
        }
        paces |= _links_s(pieces)
        paces["reading the data"] = around.data_s / around.data_workers
        paces["the driver's calls"] = around.call_s * (len(pieces) + 1)
        paces |= {
            f"the codec into worker {place}": max(piece.encode_s, piece.decode_s) for place, piece in enumerate(pieces)
        }
        paces |= {
            f"the cores of node {node}": shared_s(seconds, around.cores)
            for node, seconds in seconds_by_node(pieces, around, self._replicas).items()
        }
        slowest = max(paces, key=paces.__getitem__)
        return Plan(
            pieces=pieces,
            pace_s=paces[slowest],
            slowest=slowest,
            num_samples=self._profile.num_samples,
            replicas=self._replicas,
        )

    def whole_bytes(self, piece: Piece, sent: Piece | None = None) -> float:
        """What a worker takes at most, with the samples that codecs keep at its ends: during a step, or during a
        snapshot, which copies them.

        Args:
            piece: its part.
            sent: the next worker's; None: not looked at, or there is none.
        """
        kept = piece.kept_bytes + (0.0 if sent is None else sent.kept_bytes)
        return max(piece.memory_bytes + kept, self.base_bytes + 2 * kept)

    def of_blocks(self, blocks: Sequence[range], seats: Sequence[Seat]) -> Plan:
        """Of these stages on these workers, each edge with its best codec, whether or not it fits."""
        return self._with_codecs(self._offered_by_stage(blocks, seats))

    def as_rehearsed(self, plan: Plan, rehearsed: Sequence[Rehearsed], *, undisturbed: bool = False) -> Plan:
        """A plan with what its stages took when they were tried, instead of sums over their blocks; which codec is best
        may be another one then."""
        by_stage = self._offered_by_stage(
            [piece.blocks for piece in plan.pieces], [piece.seat for piece in plan.pieces]
        )
        steps_s = [each.undisturbed_s if undisturbed else each.step_s for each in rehearsed]
        return self._with_codecs(
            [
                [self._as_tried(piece, step_s=step_s, memory_bytes=each.memory_bytes) for piece in pieces]
                for pieces, step_s, each in zip(by_stage, steps_s, rehearsed, strict=True)
            ]
        )

    def _offered_by_stage(self, blocks: Sequence[range], seats: Sequence[Seat]) -> list[list[Piece]]:
        before = [None, *seats[:-1]]
        return [list(self.offered(*each)) for each in zip(blocks, seats, before, strict=True)]

    def _as_tried(self, piece: Piece, *, step_s: float, memory_bytes: float) -> Piece:
        summed_s = self.step_s(piece.blocks) / self._replicas
        return replace(
            piece,
            compute_s=piece.compute_s + (step_s - summed_s) / piece.seat.speed,
            memory_bytes=self.base_bytes
            + memory_bytes
            + self._crossing_bytes(piece.blocks, piece.codec)
            + piece.arriving_bytes,
        )

    def _with_codecs(self, offered: Sequence[Sequence[Piece]]) -> Plan:
        """The quickest plan, and in it at each edge the first codec that keeps its pace."""
        quickest = self.plan([min(pieces, key=_part_s) for pieces in offered])
        # A codec may cost more, here and at the sender, than it spares the link.
        cheapest = self.plan(
            [min(pieces, key=lambda piece: max(piece.processor_s, piece.link_s)) for pieces in offered]
        )
        first = self.plan(
            [next(piece for piece in pieces if _part_s(piece)[0] <= quickest.pace_s) for pieces in offered]
        )
        # Edges that share a link: each by itself may seem to keep up.
        least = self.plan([min(pieces, key=lambda piece: piece.link_s) for pieces in offered])
        best = min(first, quickest, cheapest, least, key=lambda plan: (not plan.fits, plan.pace_s))
        return first if first.fits and first.pace_s <= best.pace_s * (1 + MARGIN) else best

    def least_bytes(self) -> list[float]:
        """Of a worker with one block alone, by block."""
        return [self._memory_bytes(range(block, block + 1)) for block in range(self.num_blocks)]

    @property
    def base_bytes(self) -> float:
        """Of a worker's process without stages."""
        return self._around.base_bytes

    def _crossing_bytes(self, blocks: range, codec: Codec) -> float:
        """What waits at a worker's ends, beside the output that it is making: a call's outputs, until the last of them
        is there; and what a codec makes of what enters, which lies in the object store otherwise."""
        own = self._profile.blocks
        leaving = 0.0 if blocks.stop == self.num_blocks else own[blocks.stop - 1].leaving_bytes
        waiting = self._call_bytes(leaving)
        if codec != "fp32":
            entering = own[blocks.start - 1].leaving_bytes
            waiting += entering if codec in ChannelConfig.REMEMBERING else IN_FLIGHT * self._call_bytes(entering)
        return waiting / self._replicas

    def _arriving_bytes(self, wire: float, codec: Codec) -> float:
        """Of what has come past the object store, on a CPU, and is what the worker computes with, or
        waits for its turn to be decoded; what is decoded at once is in `_crossing_bytes`."""
        call = self._call_bytes(wire) / self._replicas
        stays = codec == "fp32" or codec in ChannelConfig.REMEMBERING
        return IN_FLIGHT * call if stays and self._around.threads and call >= self._around.past_store_bytes else 0.0

    def _call_bytes(self, output_bytes: float) -> float:
        """Of a call's outputs."""
        return min(self._around.per_call * output_bytes, max(output_bytes, self._around.call_bytes))

    def _kept_bytes_of(self, blocks: range, codec: Codec) -> float:
        """Of the samples that an end of the edge before some blocks keeps."""
        share = self._profile.codecs[codec].kept_share if blocks.start else 0.0
        sample_bytes = share * self._profile.blocks[blocks.start - 1].leaving_bytes / self._profile.num_samples
        return min(self._around.codec_cache_bytes, self._around.num_train * sample_bytes)

    def _memory_bytes(self, blocks: range) -> float:
        own, last = self._profile.blocks, self._profile.blocks[blocks.stop - 1]
        state = self._state_bytes[blocks.stop] - self._state_bytes[blocks.start] + last.classifier_state_bytes
        kept = self._kept_bytes[blocks.stop] - self._kept_bytes[blocks.start] + last.classifier_saved_bytes
        # In the pass backward the gradients of one block's outputs are there beside what is kept.
        passing = 2 * max(own[block].leaving_bytes for block in blocks)
        making = last.leaving_bytes
        return self._around.base_bytes + state + (self._around.allocated * (kept + passing) + making) / self._replicas


def seconds_by_node(pieces: Sequence[Piece], around: Surroundings, replicas: int) -> dict[str, list[float]]:
    """Processor seconds, for a microbatch, of each that computes on a node.

    Codecs that need not take their turn compute, and outputs are stored, beside their worker; data are read, and calls
    are made, beside the first one.
    """
    reading_s = [around.data_s / around.data_workers] * around.data_workers
    computing_s: dict[str, list[float]] = {pieces[0].seat.node: [*reading_s, around.call_s * (len(pieces) + 1)]}
    for piece, sent in zip_longest(pieces, pieces[1:]):
        more = [piece.compute_s - around.call_s] * (around.threads - 1)
        own = [piece.compute_s, *more] if around.threads else [around.call_s]
        own.append(piece.decode_s)
        if sent is not None:
            own += [sent.encode_s, sent.wire_bytes / replicas / around.memcpy_bytes_per_s]
        computing_s.setdefault(piece.seat.node, []).extend(own * replicas)
    return {node: [*own, around.ray_cores * shared_s(own, around.cores)] for node, own in computing_s.items()}


def shared_s(seconds: Sequence[float], cores: int) -> float:
    """After how long all are done that begin at once, each on a core of its own or on an even share of them.

    Whoever takes longest is not first, and computes the rest of its step on one core while others idle.
    """
    if len(seconds) <= cores:
        return max(seconds, default=0.0)
    done_s, before_s = 0.0, 0.0
    for place, own_s in enumerate(sorted(seconds)):
        done_s += (own_s - before_s) * max(1.0, (len(seconds) - place) / cores)
        before_s = own_s
    return done_s


def _links_s(pieces: Sequence[Piece]) -> dict[str, float]:
    """What edges take; those from one node to another share the link between these."""
    found: dict[str, float] = {}
    shared: dict[tuple[str, str], list[int]] = {}
    for place, piece in enumerate(pieces):
        before = pieces[place - 1].seat.node if place else piece.seat.node
        if before != piece.seat.node:
            shared.setdefault((before, piece.seat.node), []).append(place)
        elif piece.link_s:
            found[f"the link into worker {place}"] = piece.link_s
    for places in shared.values():
        into = " and ".join(map(str, places))
        found[f"the link into worker{'s' if len(places) > 1 else ''} {into}"] = sum(
            pieces[place].link_s for place in places
        )
    return found


def _part_s(piece: Piece) -> tuple[float, float]:
    """Seconds of a worker's slower part, and then of all that it costs."""
    return max(piece.compute_s, piece.link_s), piece.processor_s
