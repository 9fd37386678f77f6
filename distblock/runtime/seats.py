"""A worker's seat: the process that holds it now, and all that another would need to take it over.

Every call of a worker goes through its seat, numbered. If the process dies, another starts from the last snapshot and
is given the calls since then again. References to their inputs and to the snapshot belong to the driver, so they
outlive the process. Where a stage has replicas, a seat is their group: each call goes to all of them, each with its
share, and they start and end together.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import ObjectRef

from distblock.messages import Failure, Inputs, Parcel
from distblock.runtime.handover import Beginning, Ready, SnapshotReport
from distblock.runtime.transports.outbox import Offer
from distblock.schedule.failure import Deadline
from distblock.schedule.laps import Cell
from distblock.schedule.ledger import Ledger
from distblock.shares import share_of

Actor = Any
"""A handle; Ray finds its methods by name, which no type checker can follow."""

MOST_KEPT_CALLS, MOST_KEPT = 256, 512
"""Calls, and microbatches, after which a snapshot is due, however small their inputs are: whoever takes over computes
them again."""


@dataclass(frozen=True, slots=True)
class Hop:
    """Pass a parcel through.

    Attributes:
        lane: the stream that it belongs to.
        place: its place in that stream's row.
        parcel: the microbatches.
        entering: what enters, a share for each replica; None at a data worker.
        offers: where each share can be had beside the object store.
        source: worker whose cache its samples come from; None: they are what enters, or data.
        ready_s: when all that it needs was known to be there, by the driver's wall clock.
        backpressure_s: seconds from then on in which the worker stood idle for want of a credit.
    """

    lane: Any
    place: int
    parcel: Parcel
    entering: tuple[ObjectRef, ...] | None
    offers: tuple[Offer | None, ...]
    source: int | None
    ready_s: float
    backpressure_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hand out all that another worker would need to go on from here."""


@dataclass(frozen=True, slots=True)
class Release:
    """Free what a stage left after a lap: its cache, or a copy of its weights."""

    cell: Cell
    what: Inputs


@dataclass(frozen=True, slots=True)
class Collect:
    """Hand out the final weights."""


Call = Hop | Snapshot | Release | Collect


@dataclass(frozen=True, slots=True)
class Event:
    """A call has ended.

    Attributes:
        seat: where.
        incarnation: of which of its processes.
        turn: the call's number.
        call: the call.
        value: references to what it handed out beside its reports: a share for each replica.
        report: its reports, one of each replica; a data worker's.
        failure: why there is none.
        sent_s, told_s: when the call was made, and its end told, by the driver's wall clock.
    """

    seat: Seat
    incarnation: int
    turn: int
    call: Call
    value: tuple[ObjectRef, ...]
    report: tuple[Any, ...]
    failure: BaseException | None
    sent_s: float
    told_s: float


class Seat:
    """One worker, or data worker.

    Attributes:
        actors: the processes, one of each replica.
        where: where its first ones are, once they are ready.

    Args:
        index: its place among the workers; data workers follow the workers.
        name: in words.
        start: starts the processes.
        events: where the ends of calls are told.
        deadline: for finishing what it was given.
        beginning: what its first process starts from.
        window: calls that are with it at once. A threaded actor starts its calls in any order; where fewer threads than
            calls waited for their turn, the one whose turn it is might never start.
    """

    def __init__(
        self,
        index: int,
        *,
        name: str,
        start: Callable[[Beginning], list[Actor]],
        events: queue.SimpleQueue[Event],
        deadline: Deadline,
        beginning: Beginning,
        window: int,
    ) -> None:
        self.index = index
        self.name = name
        self.deadline = deadline
        self.ledger: Ledger[Call] = Ledger()
        self.incarnation = 0
        self.recovering: tuple[Failure, float] | None = None
        self.beginning = beginning
        self._start = start
        self._events = events
        self._window = window
        self._num_sent = 0
        self._unsent: deque[tuple[int, Call]] = deque()
        self.where: tuple[Ready, ...] = ()
        self.actors = start(beginning)

    def take(self, call: Call, num_bytes: int = 0) -> int:
        """Give the worker a call.

        Args:
            call: the call.
            num_bytes: what keeping its input takes.

        Returns:
            The call's number.
        """
        turn = self.ledger.begin(call, num_bytes, len(call.parcel.items) if isinstance(call, Hop) else 0)
        self.deadline.begin(time.monotonic())
        self._unsent.append((turn, call))
        self._send_some()
        return turn

    def finish(self, event: Event) -> bool:
        """A call of the present process has ended well; whether its result is new."""
        self._num_sent -= 1
        self._send_some()
        is_new = self.ledger.finish(event.turn)
        self.deadline.finish(time.monotonic(), is_idle=self.ledger.oldest_unfinished is None)
        return is_new

    def restart(self) -> int:
        """Another process takes over; how many microbatches it computes again whose results are known."""
        self.end()
        self.incarnation += 1
        self.beginning = replace(self.beginning, process=self.incarnation)
        self.actors = self._start(self.beginning)
        self.deadline.restart(time.monotonic(), is_idle=self.ledger.oldest_unfinished is None)
        self._num_sent = 0
        self._unsent = deque((entry.turn, entry.call) for entry in self.ledger.entries)
        self._send_some()
        return sum(entry.num_microbatches for entry in self.ledger.entries if entry.is_finished)

    def end(self) -> None:
        """End the processes that hold it."""
        for actor in self.actors:
            ray.kill(actor)

    def _send_some(self) -> None:
        while self._unsent and self._num_sent < self._window:
            self._num_sent += 1
            self._send(*self._unsent.popleft())

    def _send(self, turn: int, call: Call) -> None:
        value, reports = self._call(turn, call)
        incarnation, sent_s = self.incarnation, time.time()

        def tell(results: tuple[Any, ...], failure: BaseException | None) -> None:
            self._events.put(Event(self, incarnation, turn, call, value, results, failure, sent_s, time.time()))

        when_all(reports, tell)

    def _call(self, turn: int, call: Call) -> tuple[tuple[ObjectRef, ...], list[ObjectRef]]:
        raise NotImplementedError


def when_all(references: Sequence[ObjectRef], tell: Callable[[tuple[Any, ...], BaseException | None], None]) -> None:
    """Tell once: all results when they are there, or the first failure at once, since the others may wait for ever.

    Args:
        references: what to wait for.
        tell: is given the results, or none of them and the failure; in a thread of Ray's.
    """
    results: dict[int, Any] = {}
    lock = threading.Lock()
    is_told = False

    def settle(position: int, future: Future[Any]) -> None:
        nonlocal is_told
        failure = future.exception()
        with lock:
            if failure is None:
                results[position] = future.result()
            if is_told or (failure is None and len(results) < len(references)):
                return
            is_told = True
        tell(() if failure else tuple(results[place] for place in range(len(references))), failure)

    for position, reference in enumerate(references):
        reference.future().add_done_callback(partial(settle, position))


class DataSeat(Seat):
    """A data worker: it remembers nothing, so only what is not finished is asked again.

    Args:
        shares: how many replicas share each microbatch.
        others: as for `Seat`.
    """

    def __init__(self, index: int, *, shares: int, **others: Any) -> None:
        self._shares = shares
        super().__init__(index, **others)

    def finish(self, event: Event) -> bool:
        """A call has ended well."""
        is_new = super().finish(event)
        self.ledger.forget(event.turn)
        return is_new

    def _call(self, turn: int, call: Call) -> tuple[tuple[ObjectRef, ...], list[ObjectRef]]:
        assert isinstance(call, Hop)
        (actor,) = self.actors
        method = actor.prepare if call.source is None else actor.locate
        *value, report = method.options(num_returns=self._shares + 1).remote(call.parcel, turn)
        return tuple(value), [report]


class StageSeat(Seat):
    """A worker with stages.

    Args:
        kept_bytes: of inputs after which a snapshot is due.
        source: a worker's cache as it lies now, by the worker's index.
        others: as for `Seat`.
    """

    def __init__(self, index: int, *, kept_bytes: int, source: Callable[[int], Any], **others: Any) -> None:
        self._kept_bytes = kept_bytes
        self._source = source
        self._storing: set[Any] = set()
        self._is_due = False
        self._taken: tuple[int, ObjectRef, SnapshotReport] | None = None
        super().__init__(index, **others)

    def take(self, call: Call, num_bytes: int = 0) -> int:
        """Give the worker a call; a snapshot follows where one is due."""
        number = super().take(call, num_bytes)
        if isinstance(call, Hop) and call.parcel.purpose == "store":
            (self._storing.discard if call.parcel.closes_pass else self._storing.add)(id(call.lane))
        if self._keeps_much:
            self.take_snapshot()
        return number

    @property
    def _keeps_much(self) -> bool:
        ledger = self.ledger
        many = ledger.kept_microbatches > MOST_KEPT or len(ledger.entries) > MOST_KEPT_CALLS
        return many or ledger.kept_bytes > self._kept_bytes

    def take_snapshot(self) -> None:
        """Ask for a snapshot, unless one is on its way; in the middle of a file there can be none."""
        if not self._is_due and not self._storing:
            self.take_exact_snapshot()

    def take_exact_snapshot(self) -> int:
        """Ask for a snapshot at this very place, not in the middle of a file; the call's number."""
        assert not self._storing
        self._is_due = True
        return super().take(Snapshot())

    def finish(self, event: Event) -> bool:
        """A call has ended well; a snapshot lets go of what came before it."""
        is_new = super().finish(event)
        if is_new and isinstance(event.call, Snapshot):
            self._taken = event.turn, event.value[0], event.report[0]
        self._adopt()
        return is_new

    def _adopt(self) -> None:
        """Start from the new snapshot from now on. Reports may overtake each other, and what is computed before the
        snapshot could not be computed again from it: so all of their results have to be known."""
        oldest = self.ledger.oldest_unfinished
        if self._taken is None or (oldest is not None and oldest.turn < self._taken[0]):
            return
        turn, state, report = self._taken
        self._taken, self._is_due = None, False
        caches = replace(self.beginning.caches, sha256=report.caches.sha256)
        self.beginning = replace(self.beginning, turn=turn + 1, state=(state,), caches=caches)
        self.ledger.cover(turn + 1)

    def _call(self, turn: int, call: Call) -> tuple[tuple[ObjectRef, ...], list[ObjectRef]]:
        asked = [self._ask(replica, actor, turn, call) for replica, actor in enumerate(self.actors)]
        return tuple(value for value, _ in asked if value is not None), [report for _, report in asked]

    def _ask(self, replica: int, actor: Actor, turn: int, call: Call) -> tuple[ObjectRef | None, ObjectRef]:
        match call:
            case Hop():
                source = None if call.source is None else self._source(call.source)
                parcel = share_of(call.parcel, replica=replica, count=len(self.actors))
                entering = [] if call.entering is None else [call.entering[replica]]
                offered = call.offers[replica]
                value, report = actor.hop.options(num_returns=2).remote(parcel, entering, turn, source, offered)
                return value, report
            case Snapshot():
                value, report = actor.snapshot.options(num_returns=2).remote(turn)
                return value, report
            case Release():
                return None, actor.release.remote(turn, call.cell.stage, call.cell.lap, call.what)
            case Collect():
                return None, actor.states.remote(turn)
