"""The driver: executes the schedule. It holds references, never tensors.

It is a loop around a `Course` and a `Dispatcher` for each stream under way: a call ends, they say who may begin what,
and each leave becomes one call of a worker, which takes a reference in and gives two back, the output's and the
report's. Only the report is read. A worker that dies or freezes is replaced; what it had is computed again, and nobody
else notices more than a delay.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from distblock.errors import WorkerLostError
from distblock.messages import Failure, FailureKind, Item
from distblock.metrics.observer import Observer
from distblock.runtime.cluster import check_machine, joined, placed
from distblock.runtime.crew import Crew, Job, State, cause, crew, in_one_line
from distblock.runtime.placement import Resources, bundles
from distblock.runtime.seats import Call, Collect, DataSeat, Event, Hop, Release, Seat
from distblock.schedule.course import Course, Lane
from distblock.schedule.credits import Credits, Limit
from distblock.schedule.dispatch import Dispatch, Dispatcher
from distblock.schedule.failure import Failures
from distblock.schedule.laps import Cell

__all__ = ["Job", "State", "check", "execute"]

WATCH_S = 0.5
"""Seconds between two looks at workers that say nothing."""


def check(job: Job) -> None:
    """What can be known of the machine before Ray is started.

    Raises:
        InputError: there are too few GPUs.
    """
    check_machine(job.hosts[0].config, _bundles(job))


def execute(job: Job, course: Course, observer: Observer, *, note: Callable[[str], None]) -> State:
    """Run a job on a cluster.

    Args:
        job: what to run.
        course: the streams.
        observer: is told everything as it happens.
        note: is told in words what the run waits for, and what it survives.

    Returns:
        The final weights and buffers.

    Raises:
        InputError: the cluster cannot hold the run.
        DataError: a sample cannot be read.
        StageError: a stage failed.
        WorkerLostError: workers' processes ended more often than the run is to survive.
    """
    config = job.hosts[0].config
    with ExitStack() as stack:
        stack.enter_context(joined(config, _bundles(job)))
        group = stack.enter_context(placed(_bundles(job), strategy=config.resources.strategy, note=note))
        people = stack.enter_context(crew(job, group))
        return _Run(job, people, course, observer, note).loop()


def _bundles(job: Job) -> list[Resources]:
    return bundles(job.hosts[0].config, num_workers=len(job.hosts))


class _Lane:
    """A stream under way: the workers it passes, and the outputs that wait for the next one.

    Attributes:
        workers: index of each worker it passes, in order.
        source: the worker whose cache its microbatches come from; None: they are data.
        payloads: by the place that made them and the microbatch's number.
    """

    def __init__(self, lane: Lane, dispatcher: Dispatcher, workers: Sequence[int], source: int | None) -> None:
        self.lane = lane
        self.dispatcher = dispatcher
        self.workers = workers
        self.source = source
        self.payloads: dict[tuple[int, int], ObjectRef] = {}

    def edge(self, place: int) -> int | None:
        """The worker that an edge leads to, by the place before it; None where samples come from a cache."""
        return None if self.source is not None else self.workers[place]


class _Run:
    """The loop's state: the lanes under way, and what nobody has freed yet."""

    def __init__(self, job: Job, people: Crew, course: Course, observer: Observer, note: Callable[[str], None]) -> None:
        self._job = job
        self._crew = people
        self._course = course
        self._observer = observer
        self._note = note
        self._lanes: list[_Lane] = []
        self._limits = self._edge_limits()
        self._edges = [Credits(limit) for limit in self._limits]
        self._caches = job.hosts[0].inputs == "cache"
        self._unread: list[Cell] = []
        self._failures = Failures(job.hosts[0].config.recovery.max_failures)
        self._watched_s = time.monotonic()
        self._state: State = {}

    def loop(self) -> State:
        """Until every lane has come to its end; the final weights."""
        self._observer.begin()
        self._begin()
        while not self._course.is_finished:
            self._handle_next()
            self._begin()
        for seat in self._crew.workers:
            seat.take(Collect())
        while any(seat.ledger.oldest_unfinished for seat in self._crew.workers):
            self._handle_next()
        return self._state

    def _edge_limits(self) -> list[Limit]:
        config = self._job.hosts[0].config
        ahead = config.data.prefetch * config.data.workers
        counts = [ahead, *(config.channel.max_in_flight for _ in self._job.hosts[1:])]
        return [Limit(count=count, num_bytes=config.channel.max_in_flight_bytes) for count in counts]

    def _begin(self) -> None:
        """Everything that may begin: lanes, and in each lane microbatches; then lanes that were the last to hinder."""
        while True:
            self._lanes += [self._lane(lane) for lane in self._course.begin()]
            for lane in self._lanes:
                self._begin_in(lane)
            ended = [lane for lane in self._lanes if lane.dispatcher.is_finished]
            for lane in ended:
                self._end(lane)
            if not ended or self._course.is_finished:
                break
        # Lanes share edges: none is always the first to be asked.
        self._lanes = self._lanes[1:] + self._lanes[:1]

    def _lane(self, lane: Lane) -> _Lane:
        last = len(self._job.hosts) - 1 if lane.cell is None else self._host_of(lane.cell.stage)
        source, workers, edges = None, range(last + 1), self._edges[: last + 1]
        if lane.cell is not None and lane.cell.stage > 0 and self._caches:
            source = self._host_of(lane.cell.stage - 1)
            workers, edges = range(last, last + 1), [Credits(self._limits[0])]
        entered = [self._job.hosts[worker].stages.start for worker in workers]
        if source is not None and lane.cell is not None:
            entered = [lane.cell.stage]

        def size(edge: int, item: Item) -> int:
            return item.num_samples * self._job.hosts[0].blueprint.sample_bytes[entered[edge]]

        drops = self._job.hosts[0].config.regime.name == "asynchronous"
        return _Lane(lane, Dispatcher(lane.items, edges=edges, size=size, drops=drops), workers, source)

    def _host_of(self, stage: int) -> int:
        return next(index for index, spec in enumerate(self._job.hosts) if stage in spec.stages)

    def _end(self, lane: _Lane) -> None:
        self._lanes.remove(lane)
        if self._caches:
            # What it has read can be freed as soon as nobody would have to read it again.
            for worker in lane.workers:
                self._crew.workers[worker].take_snapshot()
        self._unread += self._course.finish(lane.lane)
        self._release_unread()

    def _release_unread(self) -> None:
        for cell in list(self._unread):
            if any(_reads(entry.call, cell) for seat in self._crew.workers for entry in seat.ledger.entries):
                continue
            self._unread.remove(cell)
            for host in {self._host_of(cell.stage), self._host_of(cell.stage + 1)}:
                self._crew.workers[host].take(Release(cell))

    def _begin_in(self, lane: _Lane) -> None:
        for dispatch in lane.dispatcher.begin(time.monotonic()):
            self._submit(lane, dispatch)
            if dispatch.place < len(lane.workers):
                self._tell_edge(lane, dispatch.place, dispatch.backpressure_s)

    def _submit(self, lane: _Lane, dispatch: Dispatch) -> None:
        place, item = dispatch.place, dispatch.item
        if place == 0:
            feeder = self._crew.feeders[item.number % len(self._crew.feeders)]
            feeder.take(Hop(lane, place, item, None, lane.source))
            return
        worker = lane.workers[place - 1]
        entering = lane.payloads.pop((place - 1, item.number))
        size = 0
        if lane.source is None:
            size = item.num_samples * self._job.hosts[0].blueprint.sample_bytes[self._job.hosts[worker].stages.start]
        self._crew.workers[worker].take(Hop(lane, place, item, entering, lane.source), size)

    def _handle_next(self) -> None:
        try:
            event = self._crew.events.get(timeout=WATCH_S)
        except queue.Empty:
            self._watch()
            return
        if event.incarnation != event.seat.incarnation:
            return  # of a process that is gone
        if event.failure is not None:
            self._fail(event.seat, event.failure)
        elif event.seat.finish(event):
            self._tell_recovered(event.seat)
            self._finish(event)
        if time.monotonic() - self._watched_s > WATCH_S and self._crew.events.empty():
            self._watch()

    def _finish(self, event: Event) -> None:
        match event.call:
            case Hop():
                self._finish_hop(event, event.call)
            case Collect():
                self._state |= event.report
            case _:
                self._release_unread()

    def _finish_hop(self, event: Event, hop: Hop) -> None:
        lane, place, item = hop.lane, hop.place, hop.item
        if place > 0:
            self._observer.record(event.report)
        elif event.report is not None:
            departure, node = event.report
            self._observer.record_departure(departure, node)
        if place < len(lane.workers):
            assert event.value is not None
            lane.payloads[place, item.number] = event.value
        lane.dispatcher.finish(place, item)
        while lane.dispatcher.dropped:
            edge, dropped = lane.dispatcher.dropped.pop()
            del lane.payloads[edge, dropped.number]
            self._observer.record_drop(self._stage_after(lane, edge))
        if place > 0:
            self._tell_edge(lane, place - 1, 0.0)

    def _stage_after(self, lane: _Lane, place: int) -> int:
        return self._job.hosts[lane.workers[place]].stages.start

    def _tell_edge(self, lane: _Lane, place: int, backpressure_s: float) -> None:
        worker = lane.edge(place)
        if worker is None:
            return
        stage, credits = self._stage_after(lane, place), self._edges[worker]
        self._observer.set_in_flight(stage, credits.count, credits.num_bytes)
        if backpressure_s:
            self._observer.record_backpressure(stage, backpressure_s)

    def _watch(self) -> None:
        """See who has been silent for too long."""
        self._watched_s = now_s = time.monotonic()
        for seat in (*self._crew.workers, *self._crew.feeders):
            overdue_s = seat.deadline.overdue_s(now_s)
            if overdue_s is not None:
                self._replace(seat, "froze", f"no result for {overdue_s:.0f} s")

    def _fail(self, seat: Seat, failure: BaseException) -> None:
        if isinstance(failure, RayTaskError):
            raise cause(failure)
        if not isinstance(failure, RayActorError):
            raise failure
        self._replace(seat, "died", f"its process ended: {in_one_line(failure)}")

    def _replace(self, seat: Seat, what: str, why: str) -> None:
        """Another process for a seat."""
        entry = seat.ledger.oldest_unfinished
        assert entry is not None
        place = str(entry.call.item) if isinstance(entry.call, Hop) else type(entry.call).__name__.lower()
        last = self._failures.tell(seat.name, entry.turn)
        if last is not None:
            raise WorkerLostError(f"{seat.name}, {place}: {why} ({last})")
        replayed = seat.restart()
        kinds: dict[tuple[bool, str], FailureKind] = {
            (False, "died"): "worker_died",
            (False, "froze"): "worker_froze",
            (True, "died"): "data_worker_died",
            (True, "froze"): "data_worker_froze",
        }
        kind = kinds[isinstance(seat, DataSeat), what]
        self._tell_recovered(seat)
        failure = Failure(kind=kind, who=seat.name, place=place, cause=why, replayed=replayed, held_up_s=0.0)
        seat.recovering = failure, time.monotonic()
        self._note(f"{seat.name} {what} at {place}; started again, {replayed} calls are computed again")

    def _tell_recovered(self, seat: Seat) -> None:
        """The first new result of whoever took a seat over, or its end."""
        if seat.recovering is not None:
            failure, since_s = seat.recovering
            seat.recovering = None
            self._observer.record_failure(replace(failure, held_up_s=time.monotonic() - since_s))


def _reads(call: Call, cell: Cell) -> bool:
    """Whether computing a call again would read the cache that a cell has left."""
    if not isinstance(call, Hop) or call.source is None or call.lane.lane.cell is None:
        return False
    return call.lane.lane.cell == Cell(lap=cell.lap, stage=cell.stage + 1)
