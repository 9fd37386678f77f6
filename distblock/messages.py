"""What travels: small frozen records, the same for every executor.

A microbatch's place in the run is fixed before the run starts (`Item`); what a stage found out about it comes back as
a `StageReport`; what its way between two workers cost comes back as an `Arrival` and a `Departure`. Standard library
only, so that the schedule, the workers and the report share one vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distblock.pickling import quickly_pickled

Part = Literal["train", "validation", "test"]
"""A part of the data set."""

Purpose = Literal["train", "evaluate", "store"]
"""What a microbatch is for: a step on it, a measurement on it, or the stage's output on it, for its cache."""

Inputs = Literal["cache", "frozen"]
"""What a stage trains on where stages train one by one: cached outputs of the stage before, or outputs computed anew by
frozen stages."""

Role = Literal["train", "evaluate", "forward"]
"""What one stage does with a microbatch; forward: pass it on, in evaluation mode, without its classifier."""

FailureKind = Literal[
    "worker_died",
    "worker_froze",
    "worker_lost_device",
    "data_worker_died",
    "data_worker_froze",
    "node_died",
    "interrupted",
    "checkpoint_failed",
]
"""What a run survives."""


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One microbatch's place in the stream that every stage sees in the same order.

    Attributes:
        number: position in the stream, counted from 0 over the whole run.
        purpose: what a stage does with it.
        part: which part of the data the samples come from.
        epoch: training epochs begun before this one's, counted from 0.
        index: position within its pass over the part, counted from 0.
        first_sample: where the microbatch starts in the pass's order of samples.
        num_samples: samples in the microbatch.
        batch_samples: samples of the batch that it is a piece of; gradients are averaged over these.
        closes_batch: it is the last microbatch of its batch: the optimizer takes its step.
        closes_pass: it is the last microbatch of its pass over the part.
        stage: the stage it is for, where stages train one by one: those before it run forward only, and none after
            it sees the microbatch. None: it is for all stages.
        lap: sweep over the stages that it belongs to, counted from 0.
        stopped: stages that have stopped training and run forward only.
    """

    number: int
    purpose: Purpose
    part: Part
    epoch: int
    index: int
    first_sample: int
    num_samples: int
    batch_samples: int
    closes_batch: bool
    closes_pass: bool
    stage: int | None = None
    lap: int = 0
    stopped: tuple[int, ...] = ()

    @classmethod
    def of_batch(cls, number: int, num_samples: int) -> Item:
        """A training batch by itself, where its place in a data set is of no account."""
        return cls(
            number=number,
            purpose="train",
            part="train",
            epoch=0,
            index=number,
            first_sample=0,
            num_samples=num_samples,
            batch_samples=num_samples,
            closes_batch=True,
            closes_pass=False,
        )

    def role(self, stage: int) -> Role:
        """What a stage does with it."""
        if self.purpose == "store" or self.stage not in (None, stage):
            return "forward"
        if self.purpose == "train" and stage in self.stopped:
            return "forward"
        return self.purpose

    def __str__(self) -> str:
        name = {"train": "training", "validation": "validation", "test": "test"}[self.part]
        lap = "" if self.stage is None else f"lap {self.lap + 1} of stage {self.stage}, "
        return f"{lap}epoch {self.epoch + 1}, {name} microbatch {self.index}"


@dataclass(frozen=True, slots=True)
class Parcel:
    """Consecutive microbatches that go from worker to worker together, by one call each: of one pass, one or more."""

    items: tuple[Item, ...]

    @property
    def number(self) -> int:
        """That of its first microbatch."""
        return self.items[0].number

    @property
    def stop(self) -> int:
        """Number of the first microbatch after it."""
        return self.items[-1].number + 1

    @property
    def purpose(self) -> Purpose:
        """What its microbatches are for."""
        return self.items[0].purpose

    @property
    def closes_pass(self) -> bool:
        """Its last microbatch is the last of its pass."""
        return self.items[-1].closes_pass

    @property
    def num_samples(self) -> int:
        """Samples in all of its microbatches."""
        return sum(item.num_samples for item in self.items)

    def __str__(self) -> str:
        more = "" if len(self.items) == 1 else f" to {self.items[-1].index}"
        return f"{self.items[0]}{more}"


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class StageReport:
    """What one stage measured on one microbatch. Sums, so that adding reports is exact.

    Attributes:
        stage: index of the stage.
        role: what it did; one that ran forward only has measured nothing but its time.
        loss_sum: cross-entropy (with the run's label smoothing in training, none in evaluation), summed over samples.
        transport_cost_sum: the stage's transport cost times the number of samples; 0 where it has none.
        num_correct: samples whose class the auxiliary classifier got right.
        num_samples: samples in the microbatch.
        compute_s: seconds the stage computed.
        lr: learning rate of the step; None in evaluation.
        multiplier: lambda of the step where the multiplier tunes itself, else None.
        updates: optimizer steps that the stage has taken so far.
    """

    stage: int
    role: Role
    loss_sum: float
    transport_cost_sum: float
    num_correct: int
    num_samples: int
    compute_s: float
    lr: float | None
    multiplier: float | None = None
    updates: int = 0


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """The sender's side of a hop.

    Attributes:
        edge: the receiving stage k of the edge ``k-1 -> k``; 0 is the edge from the data to stage 0.
        payload_bytes: bytes of the activations before the codec.
        wire_bytes: bytes that are stored: activations after the codec, and labels. 0 if the hop stays in one process.
        encode_s: seconds in the codec, with the copy from the device.
        put_s: seconds in which the object store took the bytes, and they were set aside for the next worker.
        in_turn_s: those of encoding's seconds that took their turn among what is computed: of codecs that remember, and
            of hops within a process.
    """

    edge: int
    payload_bytes: int
    wire_bytes: int
    encode_s: float
    put_s: float
    in_turn_s: float = 0.0


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """The receiver's side of a hop.

    Attributes:
        edge: the receiving stage k of the edge ``k-1 -> k``; 0 is the edge from the data to stage 0.
        fetch_s: seconds from asking for the bytes to holding them.
        decode_s: seconds in the codec, with the copy to the device.
        exposed_s: those of the fetch's and decoding's seconds in which the worker had nothing to compute.
        in_turn_s: those of decoding's seconds that took their turn, as for `Departure`. What is neither was overlapped.
        past_store: it came over a connection from the sender, and not through the object store.
    """

    edge: int
    fetch_s: float
    decode_s: float
    exposed_s: float
    in_turn_s: float = 0.0
    past_store: bool = False


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """When a microbatch was where, at one worker: seconds since the epoch, by that worker's wall clock.

    Microbatches of one parcel are fetched and stored together, so they share those moments.

    Attributes:
        asked_s: it was asked for; a data worker: it was asked for it.
        fetched_s: its bytes were there.
        decoded_s: it was on the device.
        started_s, finished_s: when computing began and ended; a data worker: reading and augmenting.
        encoded_s: its output was encoded.
        stored_s: the object store had taken the output.
        wire_bytes: of what left; 0 where nothing did.
    """

    asked_s: float
    fetched_s: float
    decoded_s: float
    started_s: float
    finished_s: float
    encoded_s: float
    stored_s: float
    wire_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Handling:
    """The driver's side of a microbatch at one worker: seconds since the epoch, by the driver's wall clock.

    Attributes:
        worker: index of the worker, of all its replicas; data workers count down from -1.
        ready_s: all that it needs was known to be there.
        backpressure_s: seconds from then on in which the worker stood idle for want of a credit.
        sent_s: the call was made.
        told_s: Ray told its end.
        handled_s: the driver came to it.
    """

    worker: int
    ready_s: float
    backpressure_s: float
    sent_s: float
    told_s: float
    handled_s: float


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """What a data worker tells about one microbatch.

    Attributes:
        item: the microbatch.
        departures: its way to stage 0, of each replica's share; none where samples come from a cache.
        node: the host's address.
        passage: when it was where; None: nobody looked.
    """

    item: Item
    departures: tuple[Departure, ...]
    node: str
    passage: Passage | None


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReport:
    """All that a worker tells about one microbatch.

    Attributes:
        worker: index of the worker.
        item: the microbatch.
        stages: a report per hosted stage, in order.
        arrivals, departures: the hops in and out, those between two stages of this worker too.
        started_s, finished_s: when computing began and ended, seconds since the epoch of the worker's wall clock.
        idle_s: seconds between the end of the last computing and the start of this one.
        peak_memory_bytes: largest so far: allocated on the device, or of the process on a CPU, without what it shares.
        node: the host's address.
        reused: numbers of earlier microbatches that the worker has trained on again since its last report.
        reuse_s: seconds it computed on them.
        passage: when it was where; None: nobody looked.
    """

    worker: int
    item: Item
    stages: tuple[StageReport, ...]
    arrivals: tuple[Arrival, ...]
    departures: tuple[Departure, ...]
    started_s: float
    finished_s: float
    idle_s: float
    peak_memory_bytes: int
    node: str
    reused: tuple[int, ...] = ()
    reuse_s: float = 0.0
    passage: Passage | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What lies between two nodes that an edge connects, as it was found before the first microbatch.

    Attributes:
        edge: the receiving stage k of the edge ``k-1 -> k``; 0 is the edge from the data to stage 0.
        sender, receiver: addresses of the nodes.
        sender_interface, receiver_interface: names of the network interfaces that lead to the other node; None: the
            kernel names none.
        sender_speed_bytes_per_s, receiver_speed_bytes_per_s: what the kernel says that these can do; None: nothing.
        rate_bytes_per_s: what one TCP connection carried; None: there could be none.
    """

    edge: int
    sender: str
    receiver: str
    sender_interface: str | None
    receiver_interface: str | None
    sender_speed_bytes_per_s: float | None
    receiver_speed_bytes_per_s: float | None
    rate_bytes_per_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a worker is at, as the driver sees it.

    Attributes:
        who: the worker, with its stages; or the data worker.
        edge: the stage that its input's edge enters; None at a data worker.
        at: the oldest of its calls that has not ended, in words; None: it has none.
        since_s: seconds for which it has finished nothing, though it had something to do; 0 where it has not.
        waiting: calls that it has been given and not finished, that one among them.
        blocked: the stage that an edge enters on which as much is in flight as may be, so that it is given nothing;
            ``since_s`` is how long. None: there is room.
    """

    who: str
    edge: int | None
    at: str | None
    since_s: float
    waiting: int
    blocked: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Something that the run has survived.

    Attributes:
        kind: what happened to whom.
        who: the worker, with its stages; the node; the run; or the storage.
        place: the microbatch that it was at, or the checkpoint.
        cause: what was seen of it.
        replayed: microbatches that were computed again, where that is known.
        held_up_s: seconds from when it was noticed to the first new result of whoever took its place.
    """

    kind: FailureKind
    who: str
    place: str
    cause: str
    replayed: int
    held_up_s: float
