"""What a plan is: which blocks every worker has, what comes to it by which codec, and what that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distblock.config import Codec


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
        per_call: microbatches that go together, as long as they take no more than ``call_bytes``.
        call_bytes: of a call's outputs.
        past_store_bytes: of a call's outputs, from which they come from another node past the object store.
        num_train: samples to train on.
        codec_cache_bytes: what an end of an edge keeps of them at most, where its codec does.
        allocated: memory that a step takes for a byte that it keeps.
        call_s: processor seconds that a worker and the driver spend on each call, beside computing.
        data_s: processor seconds in which a microbatch is read.
        data_workers: that read at once.
        threads: cores that a worker's computing keeps busy; 0: it computes elsewhere.
        ray_cores: of each node, that Ray's own processes keep busy.
    """

    cores: int
    link_bytes_per_s: float
    memcpy_bytes_per_s: float
    base_bytes: float = 0.0
    per_call: int = 1
    call_bytes: float = math.inf
    past_store_bytes: float = math.inf
    num_train: int = 0
    codec_cache_bytes: float = 0.0
    allocated: float = 1.0
    call_s: float = 0.0
    data_s: float = 0.0
    data_workers: int = 1
    threads: int = 1
    ray_cores: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One worker's part of a plan.

    Attributes:
        blocks: of its stage.
        seat: which worker.
        codec: of what enters it; fp32 for the images.
        compute_s: of a microbatch, on its own core; with what codecs do there that take their turn: decode what enters,
            and, of a plan's pieces, encode what leaves.
        link_s: in which the link before it carries a microbatch.
        wire_bytes: of a microbatch on that link.
        memory_bytes: that it takes at most; of a plan's pieces, with the samples that codecs keep.
        arriving_bytes: of that memory, what has come from another node past the object store and waits to be computed.
        kept_bytes: of the samples that its codec keeps, here and once more at the sender.
        encode_s: in which the sender encodes what enters it, beside its computing.
        decode_s: in which that is decoded here, beside its computing.
        takes_turn: its codec encodes and decodes in turn with what is computed: it has to see microbatches in order, or
            works on a GPU.
        turn_s: which its sender's computing takes longer then.
    """

    blocks: range
    seat: Seat
    codec: Codec
    compute_s: float
    link_s: float
    wire_bytes: float
    memory_bytes: float
    arriving_bytes: float = 0.0
    kept_bytes: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    takes_turn: bool = False
    turn_s: float = 0.0

    @property
    def processor_s(self) -> float:
        """All that it costs, wherever."""
        return self.compute_s + self.encode_s + self.decode_s + self.turn_s

    @property
    def memory_share(self) -> float:
        """Of what its worker may take."""
        return self.memory_bytes / self.seat.memory_bytes


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """A stage that was tried.

    Attributes:
        step_s: of one of its workers' share of a microbatch: processor seconds on a CPU with one thread, else wall.
        undisturbed_s: the same while nobody else used the machine, as far as there were such steps.
        memory_bytes: by which its process grew, with one output; on a GPU, allocated there.
    """

    step_s: float
    undisturbed_s: float
    memory_bytes: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A layout.

    Attributes:
        pieces: one a worker, in the order of the stream.
        pace_s: seconds a microbatch, of its slowest part.
        slowest: that part, in words.
        num_samples: of a microbatch.
        replicas: workers that share each of the pieces.
    """

    pieces: tuple[Piece, ...]
    pace_s: float
    slowest: str
    num_samples: int
    replicas: int = 1

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
