"""Cuts through a running pipeline: a snapshot of every worker, all at one point of every stream, and nobody waits.

Workers are at different microbatches at any moment. Stopping them until all are at the same one would cost a bubble;
so each is asked for a snapshot as it passes that point. Where all stages train at once, the point is the first
microbatch that the first worker has not begun; where they train one by one, streams do not share stages, and the point
of each is where the stage that it trains stands now. Microbatches on their way across the cut are computed again
after a restart, like those not begun.

Source: markers as in Chandy & Lamport 1985, "Distributed snapshots", without the channels' contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray import ObjectRef

from distblock.messages import Parcel
from distblock.runtime.handover import SnapshotReport, WorkerState
from distblock.runtime.lanes import Lane
from distblock.runtime.seats import StageSeat
from distblock.schedule.position import Position, Reached
from distblock.schedule.saving import Arrays, Held, Saver


class Cuts:
    """The cut that is on its way, if one is.

    Args:
        saver: says when one is due, and takes it.
        seats: the workers.
    """

    def __init__(self, saver: Saver, seats: Sequence[StageSeat]) -> None:
        self._saver = saver
        self._seats = seats
        self._is_wanted = False
        self._through: Lane | None = None
        self._limit = 0
        self._turns: dict[int, int] = {}
        self._taken: dict[int, tuple[ObjectRef, SnapshotReport]] = {}
        self._is_open = False

    @property
    def may_store(self) -> bool:
        """Whether a file may be begun: in the middle of one there is no cut, and one that is wanted goes first."""
        return not self._is_wanted

    def look(self, lanes: Sequence[Lane], done: Sequence[Any]) -> None:
        """See whether a cut is due, or complete.

        Args:
            lanes: the streams under way.
            done: cells that are done.
        """
        if not self._is_open:
            self._is_wanted = self._is_wanted or self._saver.is_due
            if self._is_wanted and lanes and not any(lane.is_storing for lane in lanes):
                self._open(lanes, done)
        if self._is_open:
            self._ask_those_that_have_passed()
            self._close_if_complete()

    def before(self, lane: Lane, worker: int, parcel: Parcel) -> None:
        """A worker is about to be given a parcel: perhaps the first one beyond the cut."""
        if lane is self._through and worker not in self._turns and parcel.number >= self._limit:
            self._turns[worker] = self._seats[worker].take_exact_snapshot()

    def take(self, seat: StageSeat, turn: int, state: ObjectRef, report: SnapshotReport) -> None:
        """A snapshot has come, perhaps one of the cut's."""
        if self._is_open and self._turns.get(seat.index) == turn:
            self._taken[seat.index] = state, report

    def _open(self, lanes: Sequence[Lane], done: Sequence[Any]) -> None:
        running: dict[Any, Reached] = {}
        ended = []
        self._through = None
        for lane in lanes:
            items = lane.dispatcher.begun(1 if lane.cell is None else len(lane.workers))
            running[lane.cell] = lane.lane.reached(items)
            if lane.cell is None:
                self._through, self._limit = lane, items
            elif lane.has_ended:
                ended.append(lane.cell)
        self._is_wanted, self._is_open = False, True
        self._saver.begin(Position(running=running, done=(*done, *ended)))
        if self._through is None:
            self._turns = {seat.index: seat.take_exact_snapshot() for seat in self._seats}

    def _ask_those_that_have_passed(self) -> None:
        if self._through is None:
            return
        for worker, seat in enumerate(self._seats):
            if worker not in self._turns and self._through.dispatcher.has_passed(worker + 1, self._limit):
                self._turns[worker] = seat.take_exact_snapshot()

    def _close_if_complete(self) -> None:
        """All snapshots are there, and all reports of what came before them."""
        for seat in self._seats:
            oldest = seat.ledger.oldest_unfinished
            if seat.index not in self._taken or (oldest is not None and oldest.turn < self._turns[seat.index]):
                return
        held = [_held(*self._taken[seat.index]) for seat in self._seats]
        self._is_open, self._through, self._turns, self._taken = False, None, {}, {}
        self._saver.finish(held)


def _held(state: ObjectRef, report: SnapshotReport) -> Held:
    def fetch() -> Iterator[tuple[int, Arrays]]:
        # A get that waits while the object's node dies may end this process (seen once: a check of Ray's own failed in
        # its client of the store). A wait does not; what is got is then here.
        ray.wait([state])
        fetched: WorkerState = ray.get(state)
        yield from fetched.arrays.items()

    return Held(fetch=fetch, caches=report.caches, cost_s=report.seconds)
