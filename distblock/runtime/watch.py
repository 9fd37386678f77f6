"""Who is silent, who has died, and whose place is taken by another process.

A worker that dies or freezes is replaced, and computes again what it had. A node that dies ends the attempt: what it
held is gone. A run survives as many failures as its settings say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from distblock.errors import AttemptLostError, DeviceLostError, InputLostError, PeerLostError, WorkerLostError
from distblock.messages import Failure, FailureKind, Standing
from distblock.metrics.observer import Observer
from distblock.runtime.crew import Crew, Job, cause, in_one_line
from distblock.runtime.seats import DataSeat, Hop, Seat
from distblock.schedule.failure import Failures

LOST_WITH_A_NODE = (InputLostError, ObjectLostError, NodeDiedError)
"""A call's end where something that it needed, or its result, has gone with a node."""

PROCESS_ENDED = (RayActorError, WorkerCrashedError, OutOfMemoryError, LocalRayletDiedError)
"""A call's end with its process."""

LOOK_S = 0.5
"""Seconds between two looks at workers that say nothing."""

TELL_S = 5.0
"""Seconds after which whoever asks is told who is at what, though there is always something else to do."""


class Watch:
    """Over the seats of a run.

    Args:
        job: the run.
        people: its seats.
        failures: counts what is survived.
        observer: is told who is at what, and what was survived.
        note: is told the same in words.
        blocked: says which workers lack a credit: by index (-1: data workers) the stage that the edge enters, and since
            when.
    """

    def __init__(
        self,
        job: Job,
        people: Crew,
        failures: Failures,
        observer: Observer,
        note: Callable[[str], None],
        *,
        blocked: Callable[[], Mapping[int, tuple[int, float]]],
    ) -> None:
        self._job = job
        self._crew = people
        self._failures = failures
        self._observer = observer
        self._note = note
        self._blocked = blocked
        self._looked_s = self._told_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        """The last look was a while ago."""
        return time.monotonic() - self._looked_s > LOOK_S

    def look(self) -> None:
        """See who has been silent for too long, and which nodes have gone.

        Raises:
            WorkerLostError: one froze, and the run is not to survive that.
            AttemptLostError: a node has gone.
        """
        self._looked_s = now_s = time.monotonic()
        self._check_nodes("it has left the cluster")
        for seat in self._seats:
            overdue_s = seat.deadline.overdue_s(now_s)
            if overdue_s is not None:
                self._replace(seat, "froze", f"no result for {overdue_s:.0f} s")
        self._tell(now_s)

    def tell_if_overdue(self) -> None:
        """Who is at what, where nobody has looked for long. A busy driver judges nobody's silence: what they have said
        may wait for it."""
        now_s = time.monotonic()
        if now_s - self._told_s > TELL_S:
            self._tell(now_s)

    def _tell(self, now_s: float) -> None:
        self._told_s = now_s
        blocked = self._blocked()
        self._observer.record_standing([self._standing(seat, now_s, blocked) for seat in self._seats])

    @property
    def _seats(self) -> list[Seat]:
        return [*self._crew.workers, *self._crew.feeders]

    def _standing(self, seat: Seat, now_s: float, blocked: Mapping[int, tuple[int, float]]) -> Standing:
        is_worker = seat.index < len(self._crew.workers)
        lacking = blocked.get(seat.index if is_worker else -1)
        if lacking is not None and not seat.ledger.oldest_unfinished:
            stage, since_s = lacking
            own = self._job.hosts[seat.index].stages.start if is_worker else None
            return Standing(who=seat.name, edge=own, at=None, since_s=now_s - since_s, waiting=0, blocked=stage)
        return Standing(
            who=seat.name,
            edge=self._job.hosts[seat.index].stages.start if is_worker else None,
            at=_place(seat)[0] if seat.ledger.oldest_unfinished else None,
            since_s=seat.deadline.silent_s(now_s) or 0.0,
            waiting=len(seat.ledger.unfinished),
        )

    def fail(self, seat: Seat, failure: BaseException) -> None:
        """A call of a seat has failed: another process for it, where a process or its device has gone.

        Raises:
            WorkerLostError: the run is not to survive that.
            AttemptLostError: a node has gone.
            Exception: the failure itself, where it is no such thing.
        """
        error = cause(failure) if isinstance(failure, RayTaskError) else failure
        if isinstance(error, DeviceLostError):
            self._replace(seat, "lost_device", in_one_line(error))
            return
        if not isinstance(error, (*LOST_WITH_A_NODE, *PROCESS_ENDED, PeerLostError)):
            raise error
        self._check_nodes(in_one_line(error))
        if isinstance(error, LOST_WITH_A_NODE):
            raise AttemptLostError("node_died", "a node that held an input", in_one_line(error))
        self._replace(seat, "died", f"its process ended: {in_one_line(error)}")

    def _check_nodes(self, cause: str) -> None:
        """A node that has gone takes what it held with it."""
        if self._crew.nodes.is_single:
            return
        lost = self._crew.nodes.lost()
        for seat in self._seats:
            for where in seat.where:
                if where.node_id in lost:
                    raise AttemptLostError("node_died", f"node {where.node} with {seat.name}", cause)

    def _replace(self, seat: Seat, what: str, why: str) -> None:
        """Another process for a seat."""
        place, turn = _place(seat)
        last = self._failures.tell(seat.name, f"{place}, call {turn}", why)
        if last is not None:
            raise WorkerLostError(f"{seat.name}, {place}: {why} ({last})")
        kinds: dict[tuple[bool, str], FailureKind] = {
            (False, "died"): "worker_died",
            (False, "froze"): "worker_froze",
            (False, "lost_device"): "worker_lost_device",
            (True, "died"): "data_worker_died",
            (True, "froze"): "data_worker_froze",
        }
        kind = kinds[isinstance(seat, DataSeat), what]
        if self._job.hosts[0].config.recovery.scope == "run":
            raise AttemptLostError(kind, f"{seat.name}, {place}", why)
        replayed = seat.restart()
        self.tell_recovered(seat)
        failure = Failure(kind=kind, who=seat.name, place=place, cause=why, replayed=replayed, held_up_s=0.0)
        seat.recovering = failure, time.monotonic()
        self._note(
            f"{seat.name} {what.replace('_', ' its ')} at {place}; started again,"
            f" {replayed} microbatches are computed again"
        )

    def tell_recovered(self, seat: Seat) -> None:
        """The first new result of whoever took a seat over, or its end."""
        if seat.recovering is not None:
            failure, since_s = seat.recovering
            seat.recovering = None
            self._observer.record_failure(replace(failure, held_up_s=time.monotonic() - since_s))


def _place(seat: Seat) -> tuple[str, int]:
    """Where a worker is, in words, and the number of its call. It may be computing again what is known already."""
    entry = seat.ledger.oldest_unfinished or next(iter(reversed(seat.ledger.entries)), None)
    if entry is None:
        return "its next call", seat.ledger.next_turn
    return str(entry.call.parcel) if isinstance(entry.call, Hop) else type(entry.call).__name__.lower(), entry.turn
