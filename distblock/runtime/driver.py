"""The driver: executes the schedule. It holds references, never tensors.

It is a loop around a `Dispatcher`: a report comes in, the dispatcher says who may begin what, and each leave becomes
one actor call that takes a reference in and gives two back, the output's and the report's. Only the report is read.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
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
from distblock.runtime.cluster import check_machine, joined, placed
from distblock.runtime.feeder import DataWorker
from distblock.runtime.placement import bundles
from distblock.runtime.worker import StageWorker
from distblock.schedule.credits import Limit
from distblock.schedule.dispatch import Dispatch, Dispatcher

Actor = Any
"""A handle; Ray finds its methods by name, which no type checker can follow."""

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""Settings of glibc for workers. It would hand a step's large tensors back to the kernel and fault every page in again
at the next step, the more so in threads other than the first: a tenth of a ResNet-20's time on a CPU."""

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


def execute(job: Job, items: Iterator[Item], observer: Observer, *, note: Callable[[str], None]) -> State:
    """Run a job on a cluster.

    Args:
        job: what to run.
        items: the stream.
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
        _Run(job, workers, feeders, items, observer).loop()
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
        for actor in actors:
            ray.kill(actor)


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

    dispatch: Dispatch
    report: Any
    failure: BaseException | None


class _Run:
    """The loop's state: the dispatcher, the references in flight, and the events that came in."""

    def __init__(
        self,
        job: Job,
        workers: list[Actor],
        feeders: list[Actor],
        items: Iterator[Item],
        observer: Observer,
    ) -> None:
        self._job = job
        self._workers = workers
        self._feeders = feeders
        self._observer = observer
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._payloads: dict[tuple[int, int], ObjectRef] = {}
        self._stage_of_edge = [spec.stages.start for spec in job.hosts]
        self._dispatcher = Dispatcher(items, limits=self._limits(), size=self._size)

    def loop(self) -> None:
        """Until every microbatch has passed every worker."""
        self._begin()
        while not self._dispatcher.is_finished:
            event = self._events.get()
            self._finish(event)
            self._begin()

    def _limits(self) -> list[Limit]:
        config = self._job.hosts[0].config
        ahead = config.data.prefetch * config.data.workers
        counts = [ahead, *(config.channel.max_in_flight for _ in self._workers[1:])]
        return [Limit(count=count, num_bytes=config.channel.max_in_flight_bytes) for count in counts]

    def _size(self, edge: int, item: Item) -> int:
        return item.num_samples * self._job.hosts[0].blueprint.sample_bytes[self._stage_of_edge[edge]]

    def _begin(self) -> None:
        for dispatch in self._dispatcher.begin(time.monotonic()):
            self._submit(dispatch)
            if dispatch.place < len(self._workers):
                self._tell_edge(dispatch.place, dispatch.backpressure_s)

    def _submit(self, dispatch: Dispatch) -> None:
        place, item = dispatch.place, dispatch.item
        if place == 0:
            feeder = self._feeders[item.number % len(self._feeders)]
            payload, report = feeder.prepare.options(num_returns=2).remote(item)
        else:
            entering = self._payloads[place - 1, item.number]
            payload, report = self._workers[place - 1].hop.options(num_returns=2).remote(item, [entering])
        if place < len(self._workers):
            self._payloads[place, item.number] = payload
        report.future().add_done_callback(lambda future: self._events.put(_event(dispatch, future)))

    def _finish(self, event: _Event) -> None:
        place, item = event.dispatch.place, event.dispatch.item
        if event.failure is not None:
            raise self._explain(place, event.failure)
        if place == 0:
            departure, node = event.report
            self._observer.record_departure(departure, node)
        else:
            report: WorkerReport = event.report
            self._observer.record(report)
            del self._payloads[place - 1, item.number]
        self._dispatcher.finish(place, item)
        if place > 0:
            self._tell_edge(place - 1, 0.0)

    def _tell_edge(self, edge: int, backpressure_s: float) -> None:
        stage, credits = self._stage_of_edge[edge], self._dispatcher.edges[edge]
        self._observer.set_in_flight(stage, credits.count, credits.num_bytes)
        if backpressure_s:
            self._observer.record_backpressure(stage, backpressure_s)

    def _explain(self, place: int, failure: BaseException) -> BaseException:
        if isinstance(failure, RayTaskError):
            return _cause(failure)
        if isinstance(failure, RayActorError):
            return _lost(self._job, place - 1 if place > 0 else len(self._workers), failure)
        return failure


def _event(dispatch: Dispatch, future: Any) -> _Event:
    failure = future.exception()
    return _Event(dispatch, None if failure else future.result(), failure)


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
