"""The driver: executes the schedule. It holds references, never tensors.

It is a loop around a `Course` and a `Dispatcher` for each stream under way: a call ends, they say who may begin what,
and each leave becomes one call of a worker, which takes a reference in and gives two back, the outputs' and the
reports'. Only the reports are read. What has been given leave together, a parcel, is as many microbatches as keep a
worker busy for a while. A worker that dies or freezes is replaced; what it had is computed again, and nobody
else notices more than a delay. A node that dies ends the attempt: what it held is gone, and the run goes back to its
last checkpoint.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import ray
from ray.util.placement_group import PlacementGroup

from distblock.errors import AttemptLostError, WorkerLostError
from distblock.messages import DataReport, Handling, Line, Parcel, WorkerReport
from distblock.metrics.observer import Observer
from distblock.runtime.cluster import check_machine, joined, living, placed
from distblock.runtime.crew import Crew, Job, State, crew, same
from distblock.runtime.cuts import Cuts
from distblock.runtime.lanes import Lane, Waiting
from distblock.runtime.placement import Resources, bundles, in_rows, pinned
from distblock.runtime.preflight import preflight
from distblock.runtime.seats import Call, Collect, Event, Hop, Release, Snapshot, StageSeat
from distblock.runtime.transports.choice import check_encryption, offered_edges
from distblock.runtime.watch import LOOK_S, Watch
from distblock.schedule.course import Course
from distblock.schedule.course import Lane as Stream
from distblock.schedule.credits import Credits, edge_limits
from distblock.schedule.dispatch import Dispatch
from distblock.schedule.failure import Failures
from distblock.schedule.laps import Cell
from distblock.schedule.parcels import parcel_size
from distblock.schedule.saving import NoSaver, Saver

__all__ = ["Job", "State", "carry_out", "check", "execute", "survey"]


def check(job: Job) -> None:
    """What can be known of the machine before Ray is started.

    Raises:
        InputError: there are too few GPUs.
    """
    check_machine(job.hosts[0].config, _bundles(job))


def survey(job: Job, *, note: Callable[[str], None]) -> tuple[Line, ...]:
    """The lines between the hosts that a run's workers would have now; nothing of it stays on the cluster.

    Args:
        job: what is to run.
        note: is told in words what is waited for.

    Raises:
        InputError: the cluster cannot hold the run, or a node does not see the data.
        WorkerLostError: a node has gone meanwhile.
    """
    if job.hosts[0].config.address is None and not ray.is_initialized():
        return ()
    try:
        with _on_cluster(job, may_wait=False, note=note) as group:
            return preflight(job, group, note=lambda _: None).lines
    except AttemptLostError as lost:
        raise WorkerLostError(f"channel.codec auto: {lost} while lines were measured; start the run again") from lost


@contextmanager
def _on_cluster(job: Job, *, may_wait: bool, note: Callable[[str], None]) -> Iterator[PlacementGroup]:
    config = job.hosts[0].config
    with joined(config, _bundles(job), may_wait=may_wait):
        needed = in_rows(_bundles(job), living(), config)
        with placed(needed, strategy=config.resources.strategy, note=note) as group:
            yield group


def execute(
    job: Job,
    course: Course,
    observer: Observer,
    *,
    note: Callable[[str], None],
    saver: Saver | None = None,
    failures: Failures | None = None,
) -> State:
    """Run a job on a cluster.

    Args:
        job: what to run.
        course: the streams.
        observer: is told everything as it happens.
        note: is told in words what the run waits for, and what it survives.
        saver: keeps checkpoints.
        failures: counts what is survived, over attempts; where there were some, the cluster may be short of nodes, and
            is waited for.

    Returns:
        The final weights and buffers.

    Raises:
        InputError: the cluster cannot hold the run, or one of its nodes does not see the run's storage or data.
        DataError: a sample cannot be read.
        StageError: a stage failed.
        WorkerLostError: workers' processes ended more often than the run is to survive.
        AttemptLostError: a node ended, and with it what its workers held; the run can go on from a checkpoint.
        PreemptedError: the run was told to end.
    """
    check_encryption(job.hosts[0].config)
    with ExitStack() as stack:
        may_wait = failures is not None and failures.count > 0
        group = stack.enter_context(_on_cluster(job, may_wait=may_wait, note=note))
        seen = preflight(job, group, note=note)
        observer.set_lines(seen.lines)
        offered = offered_edges(job.hosts, seen.lines)
        people = stack.enter_context(crew(job, group, jemalloc=seen.jemalloc, offered=offered))
        observer.set_memcpy(people.memcpy_bytes_per_s)
        course.miss(people.missing(course.unread))
        return carry_out(job, people, course, observer, note=note, saver=saver, failures=failures, lines=seen.lines)


def carry_out(
    job: Job,
    people: Crew,
    course: Course,
    observer: Observer,
    *,
    note: Callable[[str], None],
    saver: Saver | None = None,
    failures: Failures | None = None,
    lines: Sequence[Line] = (),
) -> State:
    """The loop by itself, with a crew that is ready and lines as they were measured; as for `execute`."""
    failures = failures or Failures(job.hosts[0].config.recovery.max_failures)
    return _Run(job, people, course, observer, note, saver or NoSaver(), failures, lines).loop()


def _bundles(job: Job) -> list[Resources]:
    config = job.hosts[0].config
    return pinned(bundles(config, num_workers=len(job.hosts) * config.replicas), config)


class _Run:
    """The loop's state: the lanes under way, and what nobody has freed yet."""

    def __init__(
        self,
        job: Job,
        people: Crew,
        course: Course,
        observer: Observer,
        note: Callable[[str], None],
        saver: Saver,
        failures: Failures,
        lines: Sequence[Line],
    ) -> None:
        self._job = job
        self._crew = people
        self._course = course
        self._observer = observer
        self._note = note
        self._saver = saver
        self._cuts = Cuts(saver, people.workers)
        self._watch = Watch(job, people, failures, observer, note, blocked=self._blocked)
        self._lanes: list[Lane] = []
        rates = {line.edge: line.rate_bytes_per_s for line in lines}
        self._limits = edge_limits(job.hosts[0].config, [rates.get(host.stages.start) for host in job.hosts])
        self._edges = [Credits(limit) for limit in self._limits]
        self._caches = job.hosts[0].inputs == "cache"
        self._unread: list[Cell] = []
        self._num_fed = self._num_handled = 0
        sample_bytes = [job.hosts[0].blueprint.sample_bytes[host.stages.start] for host in job.hosts]
        self._size = parcel_size(job.hosts[0].config, list(zip(sample_bytes, self._limits, strict=True)))
        self._woken_s = time.perf_counter()
        self._state: State = {}

    def loop(self) -> State:
        """Until every lane has come to its end; the final weights."""
        self._observer.begin()
        self._woken_s = time.perf_counter()
        self._begin()
        while not self._course.is_finished:
            self._handle_next()
            self._begin()
            self._saver.check_preempted()
            self._cuts.look(self._lanes, self._course.done)
        for seat in self._crew.workers:
            seat.take(Collect())
        while any(seat.ledger.oldest_unfinished for seat in self._crew.workers):
            self._handle_next()
        return self._state

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

    def _lane(self, lane: Stream) -> Lane:
        last = len(self._job.hosts) - 1 if lane.cell is None else self._host_of(lane.cell.stage)
        source, workers, edges = None, range(last + 1), self._edges[: last + 1]
        if lane.cell is not None and lane.cell.stage > 0 and self._caches:
            source = self._host_of(lane.cell.stage - 1)
            workers, edges = range(last, last + 1), [Credits(self._limits[0])]
        entered = [self._job.hosts[worker].stages.start for worker in workers]
        if source is not None and lane.cell is not None:
            entered = [lane.cell.stage]

        def size(edge: int, parcel: Parcel) -> int:
            return parcel.num_samples * self._job.hosts[0].blueprint.sample_bytes[entered[edge]]

        drops = self._job.hosts[0].config.regime.name == "asynchronous"
        return Lane(
            lane,
            workers=workers,
            source=source,
            edges=edges,
            size=size,
            count=lambda: self._size.count,
            drops=drops,
            may_store=lambda: self._cuts.may_store,
        )

    def _host_of(self, stage: int) -> int:
        return next(index for index, spec in enumerate(self._job.hosts) if stage in spec.stages)

    def _end(self, lane: Lane) -> None:
        self._lanes.remove(lane)
        if self._caches:
            # What it has read can be freed as soon as nobody would have to read it again.
            for worker in lane.workers:
                self._crew.workers[worker].take_snapshot()
            self._release_copies(lane)
        self._unread += self._course.finish(lane.lane)
        self._release_unread()

    def _release_unread(self) -> None:
        for cell in list(self._unread):
            if any(_reads(entry.call, cell) for seat in self._crew.workers for entry in seat.ledger.entries):
                continue
            self._unread.remove(cell)
            readers = {self._host_of(cell.stage + 1)} if self._caches else set()
            for host in {self._host_of(cell.stage)} | readers:
                self._crew.workers[host].take(Release(cell, "cache" if self._caches else "frozen"))

    def _release_copies(self, lane: Lane) -> None:
        """With a lap's last stage, nobody will have to compute the lap's outputs again."""
        last = self._job.hosts[-1].stages.stop - 1
        if lane.cell is not None and lane.cell.stage == last:
            for stage in range(last):
                cell = Cell(lap=lane.cell.lap, stage=stage)
                self._crew.workers[self._host_of(stage)].take(Release(cell, "frozen"))

    def _begin_in(self, lane: Lane) -> None:
        for dispatch in lane.dispatcher.begin(time.monotonic()):
            self._submit(lane, dispatch)
            if dispatch.place < len(lane.workers):
                self._tell_edge(lane, dispatch.place, dispatch.backpressure_s)

    def _submit(self, lane: Lane, dispatch: Dispatch) -> None:
        place, parcel, waited_s = dispatch.place, dispatch.parcel, dispatch.backpressure_s
        if place == 0:
            feeder = self._crew.feeders[self._num_fed % len(self._crew.feeders)]
            self._num_fed += 1
            feeder.take(Hop(lane, place, parcel, None, (), lane.source, time.time() - waited_s, waited_s))
            return
        worker = lane.workers[place - 1]
        self._cuts.before(lane, worker, parcel)
        entering, offers, ready_s = lane.waiting.pop((place - 1, parcel.number))
        size = 0
        if lane.source is None:
            size = parcel.num_samples * self._job.hosts[0].blueprint.sample_bytes[self._job.hosts[worker].stages.start]
        hop = Hop(lane, place, parcel, entering, offers, lane.source, ready_s, waited_s)
        self._crew.workers[worker].take(hop, size)

    def _next_event(self) -> Event | None:
        """The next end of a call; all that is not waiting for one is the driver's own work."""
        self._observer.record_driver(time.perf_counter() - self._woken_s, self._num_handled)
        self._num_handled = 0
        try:
            return self._crew.events.get(timeout=LOOK_S)
        except queue.Empty:
            return None
        finally:
            self._woken_s = time.perf_counter()

    def _handle_next(self) -> None:
        event = self._next_event()
        if event is None:
            self._watch.look()
            return
        if event.incarnation != event.seat.incarnation:
            return  # of a process that is gone
        if event.failure is not None:
            self._watch.fail(event.seat, event.failure)
        elif event.seat.finish(event):
            self._watch.tell_recovered(event.seat)
            self._finish(event)
        if self._watch.is_due and self._crew.events.empty():
            self._watch.look()
        self._watch.tell_if_overdue()

    def _finish(self, event: Event) -> None:
        match event.call:
            case Hop():
                self._finish_hop(event, event.call)
            case Collect():
                self._state |= same(event.report)
            case Snapshot():
                assert isinstance(event.seat, StageSeat)
                self._cuts.take(event.seat, event.turn, event.value[0], event.report[0])
                self._release_unread()
            case Release():
                self._release_unread()

    def _finish_hop(self, event: Event, hop: Hop) -> None:
        lane, place, parcel = hop.lane, hop.place, hop.parcel
        self._num_handled = len(parcel.items)
        # What is stored again has been counted when it was stored first.
        if not lane.lane.rebuilds:
            self._tell(event, hop)
        if place == len(lane.workers):
            self._saver.count(len(parcel.items))
        else:
            offers = tuple(offer for told in event.report for offer in told.offers)
            lane.waiting[place, parcel.number] = Waiting(event.value, offers, since_s=time.time())
        lane.dispatcher.finish(place, parcel)
        while lane.dispatcher.dropped:
            edge, dropped = lane.dispatcher.dropped.pop()
            del lane.waiting[edge, dropped.number]
            self._observer.record_drop(self._stage_after(lane, edge))
        if place > 0:
            self._tell_edge(lane, place - 1, 0.0)

    def _tell(self, event: Event, hop: Hop) -> None:
        """What the replicas report of each microbatch, and when it passed through here."""
        index, num_workers = event.seat.index, len(self._crew.workers)
        handling = Handling(
            worker=index if index < num_workers else num_workers - index - 1,
            ready_s=hop.ready_s,
            backpressure_s=hop.backpressure_s,
            sent_s=event.sent_s,
            told_s=event.told_s,
            handled_s=time.time(),
        )
        # Microbatch by microbatch, all its replicas: both ends of an edge are told in that order then, even where calls
        # of different length end in another one, and none of its replicas' hops is taken for another's.
        for reports in zip(*(told.reports for told in event.report), strict=True):
            for report in reports:
                self._tell_one(report, handling)

    def _tell_one(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        if isinstance(report, WorkerReport):
            self._size.tell(handling.worker, report.finished_s - report.started_s)
            self._observer.record(report)
        else:
            for departure in report.departures:
                self._observer.record_departure(departure, report.node, report.item)
        self._observer.record_passage(report, handling)

    def _blocked(self) -> dict[int, tuple[int, float]]:
        """Workers (-1: data workers) that are given nothing for want of a credit: the stage that the edge enters, and
        since when."""
        return {
            lane.workers[place - 1] if place else -1: (self._stage_after(lane, place), since_s)
            for lane in self._lanes
            for place, since_s in lane.dispatcher.blocked()
            if lane.edge(place) is not None
        }

    def _stage_after(self, lane: Lane, place: int) -> int:
        return self._job.hosts[lane.workers[place]].stages.start

    def _tell_edge(self, lane: Lane, place: int, backpressure_s: float) -> None:
        worker = lane.edge(place)
        if worker is None:
            return
        stage, credits = self._stage_after(lane, place), self._edges[worker]
        self._observer.set_in_flight(stage, credits.num_microbatches, credits.num_bytes)
        if backpressure_s:
            self._observer.record_backpressure(stage, backpressure_s)


def _reads(call: Call, cell: Cell) -> bool:
    """Whether computing a call again would read the cache that a cell has left."""
    if not isinstance(call, Hop) or call.source is None or call.lane.cell is None:
        return False
    return call.lane.cell == Cell(lap=cell.lap, stage=cell.stage + 1)
