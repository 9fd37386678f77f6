"""The driver: executes the schedule. It holds references, never tensors.

It is a loop around a `Course` and a `Dispatcher` for each stream under way: a report comes in, they say who may begin
what, and each leave becomes one actor call that takes a reference in and gives two back, the output's and the
report's. Only the report is read.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distblock.data.dataset import DataInfo
from distblock.errors import DistblockError, WorkerLostError
from distblock.learning.host import HostSpec
from distblock.messages import Item, WorkerReport
from distblock.metrics.observer import Observer
from distblock.runtime.caches import CacheSource
from distblock.runtime.cluster import check_machine, joined, placed
from distblock.runtime.feeder import DataWorker
from distblock.runtime.placement import bundles
from distblock.runtime.worker import StageWorker
from distblock.schedule.course import Course, Lane
from distblock.schedule.credits import Credits, Limit
from distblock.schedule.dispatch import Dispatch, Dispatcher
from distblock.schedule.laps import Cell

Actor = Any
"""A handle; Ray finds its methods by name, which no type checker can follow."""

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""Settings of glibc for workers. It would hand a step's large tensors back to the kernel and fault every page in again
at the next step, the more so in threads other than the first: a tenth of a ResNet-20's time on a CPU."""

CLOSE_S = 5.0
"""Seconds in which workers have to free their caches."""

State = dict[int, dict[str, np.ndarray]]
"""Weights and buffers, by stage, then by name."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run for the cluster.

    Attributes:
        hosts: what each worker hosts, in order.
        info: what is known of the data.
        dataset: the user's own data, where it was given in Python.
        initial: weights to start from, by stage; empty for none.
    """

    hosts: tuple[HostSpec, ...]
    info: DataInfo
    dataset: Callable[..., Any] | None
    initial: State


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
        note: is told in words what the run waits for.

    Returns:
        The final weights and buffers.

    Raises:
        InputError: the cluster cannot hold the run.
        DataError: a sample cannot be read.
        StageError: a stage failed.
        WorkerLostError: a worker's process ended.
    """
    config = job.hosts[0].config
    with ExitStack() as stack:
        stack.enter_context(joined(config, _bundles(job)))
        group = stack.enter_context(placed(_bundles(job), strategy=config.resources.strategy, note=note))
        workers, feeders = stack.enter_context(_actors(job, group))
        _Run(job, workers, feeders, course, observer).loop()
        state: State = {}
        for worker in workers:
            state |= ray.get(worker.states.remote())
        return state


def _bundles(job: Job) -> list[dict[str, float]]:
    return bundles(job.hosts[0].config, num_workers=len(job.hosts))


@contextmanager
def _actors(job: Job, group: PlacementGroup) -> Iterator[tuple[list[Actor], list[Actor]]]:
    """Workers and data workers, built and ready; none is left when the block ends."""
    config = job.hosts[0].config
    actors: list[Actor] = []
    try:
        for index, spec in enumerate(job.hosts):
            actors.append(start_worker(spec, index, group, bundle=index))
        for index in range(config.data.workers):
            options = _options(group, len(job.hosts) + index, cpus=1.0, gpus=0.0)
            actors.append(
                ray.remote(DataWorker).options(**options).remote(job.hosts[0].run, config, job.info, job.dataset)
            )
        workers, feeders = actors[: len(job.hosts)], actors[len(job.hosts) :]
        for index, actor in enumerate(actors):
            _await_ready(job, index, actor)
        if job.initial:
            for worker, spec in zip(workers, job.hosts, strict=True):
                ray.get(worker.load.remote({stage: job.initial[stage] for stage in spec.stages}))
        yield workers, feeders
    finally:
        if job.hosts[0].inputs == "cache":
            _free_caches(actors[: len(job.hosts)])
        for actor in actors:
            ray.kill(actor)


def _free_caches(workers: Sequence[Actor]) -> None:
    """Files outlive a process that is killed; one that is dead or hangs already is not waited for."""
    if workers:
        ray.wait([worker.close.remote() for worker in workers], num_returns=len(workers), timeout=CLOSE_S)


def start_worker(spec: HostSpec, index: int, group: PlacementGroup, *, bundle: int) -> Actor:
    """A StageWorker in a bundle of the group, not yet ready."""
    config = spec.config
    # Calls that fetch or put wait in threads of their own: as many as may be in flight, and one for other calls.
    threads = config.data.prefetch * config.data.workers + config.channel.max_in_flight + 1
    options = _options(group, bundle, cpus=config.resources.cpus_per_worker, gpus=config.resources.gpus_per_worker)
    worker = ray.remote(StageWorker).options(**options, max_concurrency=threads, runtime_env={"env_vars": KEEP_MEMORY})
    return worker.remote(spec, index)


def _options(group: PlacementGroup, bundle: int, *, cpus: float, gpus: float) -> dict[str, Any]:
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
    return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": strategy}


def _await_ready(job: Job, index: int, actor: Actor) -> None:
    try:
        ray.get(actor.ready.remote())
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError as error:
        raise _lost(job, index, error) from None


@dataclass(frozen=True, slots=True)
class _Event:
    """A call has ended: its report, or why there is none."""

    lane: _Lane
    dispatch: Dispatch
    report: Any
    failure: BaseException | None


class _Lane:
    """A stream under way: the workers it passes, and the references in flight.

    Attributes:
        workers: index of each worker it passes, in order.
        source: the cache that its microbatches come from; None: they are data.
    """

    def __init__(self, lane: Lane, dispatcher: Dispatcher, workers: Sequence[int], source: CacheSource | None) -> None:
        self.lane = lane
        self.dispatcher = dispatcher
        self.workers = workers
        self.source = source
        self.payloads: dict[tuple[int, int], ObjectRef] = {}

    def edge(self, place: int) -> int | None:
        """The worker that an edge leads to, by the place before it; None where samples come from a cache."""
        return None if self.source is not None else self.workers[place]


class _Run:
    """The loop's state: the lanes under way, and the events that came in."""

    def __init__(
        self, job: Job, workers: list[Actor], feeders: list[Actor], course: Course, observer: Observer
    ) -> None:
        self._job = job
        self._workers = workers
        self._feeders = feeders
        self._course = course
        self._observer = observer
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._lanes: list[_Lane] = []
        self._limits = self._edge_limits()
        self._edges = [Credits(limit) for limit in self._limits]
        self._sources = self._cache_sources() if job.hosts[0].inputs == "cache" else []

    def loop(self) -> None:
        """Until every lane has come to its end."""
        self._observer.begin()
        self._begin()
        while not self._course.is_finished:
            self._finish(self._events.get())
            self._begin()

    def _edge_limits(self) -> list[Limit]:
        config = self._job.hosts[0].config
        ahead = config.data.prefetch * config.data.workers
        counts = [ahead, *(config.channel.max_in_flight for _ in self._workers[1:])]
        return [Limit(count=count, num_bytes=config.channel.max_in_flight_bytes) for count in counts]

    def _cache_sources(self) -> list[CacheSource]:
        nodes = ray.get([worker.ready.remote() for worker in self._workers])
        folders = ray.get([worker.cache_folder.remote() for worker in self._workers])
        return [
            CacheSource(node=node, folder=folder, worker=worker)
            for node, folder, worker in zip(nodes, folders, self._workers, strict=True)
        ]

    def _begin(self) -> None:
        """Everything that may begin: lanes, and in each lane microbatches; then lanes that were the last to hinder."""
        while True:
            self._lanes += [self._lane(lane) for lane in self._course.begin()]
            for lane in self._lanes:
                self._begin_in(lane)
            ended = [lane for lane in self._lanes if lane.dispatcher.is_finished]
            for lane in ended:
                self._lanes.remove(lane)
                for cell in self._course.finish(lane.lane):
                    self._release(cell)
            if not ended or self._course.is_finished:
                break
        # Lanes share edges: none is always the first to be asked.
        self._lanes = self._lanes[1:] + self._lanes[:1]

    def _lane(self, lane: Lane) -> _Lane:
        last = len(self._workers) - 1 if lane.cell is None else self._host_of(lane.cell.stage)
        source, workers, edges = None, range(last + 1), self._edges[: last + 1]
        if lane.cell is not None and lane.cell.stage > 0 and self._sources:
            source = self._sources[self._host_of(lane.cell.stage - 1)]
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

    def _release(self, cell: Cell) -> None:
        hosts = {self._host_of(stage) for stage in (cell.stage, cell.stage + 1)}
        for host in hosts:
            self._workers[host].release.remote(cell.stage, cell.lap)

    def _begin_in(self, lane: _Lane) -> None:
        for dispatch in lane.dispatcher.begin(time.monotonic()):
            self._submit(lane, dispatch)
            if dispatch.place < len(lane.workers):
                self._tell_edge(lane, dispatch.place, dispatch.backpressure_s)

    def _submit(self, lane: _Lane, dispatch: Dispatch) -> None:
        place, item = dispatch.place, dispatch.item
        if place == 0:
            feeder = self._feeders[item.number % len(self._feeders)]
            method = feeder.prepare if lane.source is None else feeder.locate
            payload, report = method.options(num_returns=2).remote(item)
        else:
            worker, entering = self._workers[lane.workers[place - 1]], lane.payloads[place - 1, item.number]
            payload, report = worker.hop.options(num_returns=2).remote(item, [entering], dispatch.turn, lane.source)
        if place < len(lane.workers):
            lane.payloads[place, item.number] = payload
        report.future().add_done_callback(lambda future: self._events.put(_event(lane, dispatch, future)))

    def _finish(self, event: _Event) -> None:
        lane, place, item = event.lane, event.dispatch.place, event.dispatch.item
        if event.failure is not None:
            raise self._explain(lane, place, event.failure)
        if place > 0:
            report: WorkerReport = event.report
            self._observer.record(report)
            del lane.payloads[place - 1, item.number]
        elif event.report is not None:
            departure, node = event.report
            self._observer.record_departure(departure, node)
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

    def _explain(self, lane: _Lane, place: int, failure: BaseException) -> BaseException:
        if isinstance(failure, RayTaskError):
            return _cause(failure)
        if isinstance(failure, RayActorError):
            return _lost(self._job, lane.workers[place - 1] if place > 0 else len(self._workers), failure)
        return failure


def _event(lane: _Lane, dispatch: Dispatch, future: Any) -> _Event:
    failure = future.exception()
    return _Event(lane, dispatch, None if failure else future.result(), failure)


def _cause(error: RayTaskError) -> BaseException:
    """The exception as the worker raised it, without Ray's wrapping."""
    return error.cause if isinstance(error.cause, DistblockError) else error


def _lost(job: Job, index: int, error: RayActorError) -> WorkerLostError:
    if index >= len(job.hosts):
        who = f"data worker {index - len(job.hosts)}"
    else:
        stages = job.hosts[index].stages
        who = f"worker {index} (stages {stages.start} to {stages.stop - 1})"
    return WorkerLostError(f"{who}: its process ended: {' '.join(str(error).split())[:500]}")
