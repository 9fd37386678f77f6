"""The seats of a run: workers and data workers, built, ready, and gone when the run ends."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distblock.config import Config
from distblock.data.dataset import DataInfo
from distblock.errors import DistblockError, WorkerLostError
from distblock.learning.host import HostSpec
from distblock.runtime.caches import CacheSource
from distblock.runtime.faults import Fault
from distblock.runtime.feeder import DataWorker
from distblock.runtime.seats import Actor, DataSeat, Event, StageSeat, planned
from distblock.runtime.worker import Beginning, StageWorker
from distblock.schedule.failure import Deadline

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""Settings of glibc for workers. It would hand a step's large tensors back to the kernel and fault every page in again
at the next step, the more so in threads other than the first: a tenth of a ResNet-20's time on a CPU."""

MOST_AHEAD = 64
"""Calls that are with a data worker at once; it takes them one by one."""

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
        faults: workers that die or freeze on purpose, in tests.
    """

    hosts: tuple[HostSpec, ...]
    info: DataInfo
    dataset: Callable[..., Any] | None
    initial: State
    faults: tuple[Fault, ...] = ()


class Crew:
    """All seats.

    Args:
        job: the run.
        group: its placement group: a bundle a worker, then a bundle a data worker.

    Attributes:
        workers, feeders: the seats.
        events: the ends of their calls.
    """

    def __init__(self, job: Job, group: PlacementGroup) -> None:
        self._job = job
        self._group = group
        self._nodes: list[str] = []
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.workers = [self._worker(index) for index in range(len(job.hosts))]
        self.feeders = [self._feeder(len(job.hosts) + index) for index in range(job.hosts[0].config.data.workers)]

    def await_ready(self) -> None:
        """Until all are built.

        Raises:
            DistblockError: one cannot be built.
            WorkerLostError: a process ended.
        """
        self._nodes = [self._ready(seat) for seat in (*self.workers, *self.feeders)]
        if self._job.hosts[0].inputs == "cache":
            folders = ray.get([seat.actor.cache_folder.remote() for seat in self.workers])
            for seat, folder in zip(self.workers, folders, strict=True):
                seat.beginning = replace(seat.beginning, folder=folder)

    def source(self, index: int) -> CacheSource:
        """Where a worker's caches lie."""
        seat = self.workers[index]
        assert seat.beginning.folder is not None
        return CacheSource(node=self._nodes[index], folder=seat.beginning.folder, worker=seat.actor)

    def close(self) -> None:
        """End all processes; files outlive a process that is killed, so they are freed before or after."""
        folders = [seat.beginning.folder for seat in self.workers if seat.beginning.folder is not None]
        if folders:
            closing = [seat.actor.close.remote() for seat in self.workers]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for seat in (*self.workers, *self.feeders):
            ray.kill(seat.actor)
        for folder, node in zip(folders, self._nodes, strict=False):
            if node == ray.util.get_node_ip_address():
                shutil.rmtree(folder, ignore_errors=True)

    def _worker(self, index: int) -> StageSeat:
        spec, job = self._job.hosts[index], self._job
        recovery = spec.config.recovery
        own = {stage: job.initial[stage] for stage in spec.stages if stage in job.initial}
        return StageSeat(
            index,
            kept_bytes=recovery.kept_bytes,
            source=self.source,
            name=f"worker {index} (stages {spec.stages.start} to {spec.stages.stop - 1})",
            start=lambda beginning: start_worker(spec, index, self._group, bundle=index, beginning=beginning),
            events=self.events,
            deadline=Deadline(recovery.deadline_s),
            window=_num_threads(spec.config) - 1,
            beginning=Beginning(initial=(ray.put(own),) if own else (), faults=planned(job.faults, index)),
        )

    def _feeder(self, index: int) -> DataSeat:
        job, config = self._job, self._job.hosts[0].config
        options = _options(self._group, index, cpus=1.0, gpus=0.0)

        def start(beginning: Beginning) -> Actor:
            actor = ray.remote(DataWorker).options(**options)
            return actor.remote(job.hosts[0].run, config, job.info, job.dataset, beginning.faults)

        return DataSeat(
            index,
            name=f"data worker {index - len(job.hosts)}",
            start=start,
            events=self.events,
            deadline=Deadline(config.recovery.deadline_s),
            window=MOST_AHEAD,
            beginning=Beginning(faults=planned(job.faults, index)),
        )

    def _ready(self, seat: StageSeat | DataSeat) -> str:
        try:
            return ray.get(seat.actor.ready.remote())
        except RayTaskError as error:
            raise cause(error) from None
        except RayActorError as error:
            raise WorkerLostError(f"{seat.name}: its process ended: {in_one_line(error)}") from None


@contextmanager
def crew(job: Job, group: PlacementGroup) -> Iterator[Crew]:
    """A crew that is ready; none of its processes is left when the block ends."""
    people = Crew(job, group)
    try:
        people.await_ready()
        yield people
    finally:
        people.close()


def start_worker(
    spec: HostSpec, index: int, group: PlacementGroup, *, bundle: int, beginning: Beginning | None = None
) -> Actor:
    """A StageWorker in a bundle of the group, not yet ready."""
    config = spec.config
    options = _options(group, bundle, cpus=config.resources.cpus_per_worker, gpus=config.resources.gpus_per_worker)
    threads = {"max_concurrency": _num_threads(config)}
    worker = ray.remote(StageWorker).options(**options, **threads, runtime_env={"env_vars": KEEP_MEMORY})
    return worker.remote(spec, index, beginning or Beginning())


def _num_threads(config: Config) -> int:
    """Calls that fetch or put wait in threads of their own: as many as may be in flight, and one for other calls."""
    return config.data.prefetch * config.data.workers + config.channel.max_in_flight + 1


def cause(error: RayTaskError) -> BaseException:
    """The exception as the worker raised it, without Ray's wrapping."""
    return error.cause if isinstance(error.cause, DistblockError) else error


def in_one_line(error: BaseException) -> str:
    """An error's text, not too long."""
    return " ".join(str(error).split())[:500]


def _options(group: PlacementGroup, bundle: int, *, cpus: float, gpus: float) -> dict[str, Any]:
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
    return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": strategy}
