"""The seats of a run: workers and data workers, built, ready, and gone when the run ends."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distblock.config import Config
from distblock.data.dataset import DataInfo
from distblock.errors import AttemptLostError, DistblockError, PreemptedError, WorkerLostError
from distblock.learning.allocator import keeping_memory
from distblock.learning.host import HostSpec
from distblock.learning.stage import arrays_sha256
from distblock.runtime.caches import CacheSource
from distblock.runtime.faults import Fault, Strikes, planned
from distblock.runtime.feeder import DataWorker
from distblock.runtime.handover import Beginning, WorkerState
from distblock.runtime.nodes import Nodes, nodes_of
from distblock.runtime.placement import rows
from distblock.runtime.reach import Storage
from distblock.runtime.seats import Actor, DataSeat, Event, StageSeat
from distblock.runtime.worker import StageWorker
from distblock.schedule.failure import Deadline
from distblock.schedule.laps import Cell
from distblock.schedule.saving import Resumed
from distblock.scratch.features import is_whole, new_folder

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
        storage: the run's directory, which every node has to see; None: nobody has to.
        resumed: what an earlier attempt has left, to go on from.
        keeps_caches: whether caches are left where they lie if the run is cut short.
        faults: workers that die or freeze on purpose, in tests.
        attempt: which attempt of the run it is, counted from 0.
    """

    hosts: tuple[HostSpec, ...]
    info: DataInfo
    dataset: Callable[..., Any] | None
    initial: State
    storage: Storage | None = None
    resumed: Resumed = field(default_factory=Resumed)
    keeps_caches: bool = False
    faults: tuple[Fault, ...] = ()
    attempt: int = 0


class Crew:
    """All seats.

    Args:
        job: the run.
        group: its placement group: a bundle a worker, or a bundle a row of them, then a bundle a data worker.
        jemalloc: where all its nodes have it; None: not all do.
        offered: the edges whose senders may offer what they hand out, by the stage that each enters.

    Attributes:
        workers, feeders: the seats.
        events: the ends of their calls.
        nodes: the cluster's nodes.
    """

    def __init__(self, job: Job, group: PlacementGroup, *, jemalloc: str | None, offered: Collection[int] = ()) -> None:
        self._job = job
        self._group = group
        self._jemalloc = jemalloc
        self._offered = offered
        self._addresses = [node.address for node in nodes_of(group)] if offered else []
        config = job.hosts[0].config
        self._num_bundles = group.bundle_count - config.data.workers
        self._rows = rows(range(self._num_bundles), length=len(job.hosts), count=config.replicas)
        self.nodes = Nodes()
        caches = job.resumed.caches
        self._caches = replace(caches, folder=caches.folder or new_folder(job.hosts[0].run))
        self._meetings: list[ObjectRef] = []
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.workers = [self._worker(index) for index in range(len(job.hosts))]
        self.feeders = [self._feeder(len(job.hosts) + index) for index in range(job.hosts[0].config.data.workers)]

    def await_ready(self) -> None:
        """Until all are built.

        Raises:
            DistblockError: one cannot be built.
            WorkerLostError: a process ended.
            AttemptLostError: a process ended with its node.
        """
        for seat in (*self.workers, *self.feeders):
            seat.where = tuple(self._ready(seat, actor.ready.remote()) for actor in seat.actors)
        for meeting in self._meetings:
            self._ready(self.workers[0], meeting)

    @property
    def memcpy_bytes_per_s(self) -> float | None:
        """Of the slowest host with workers; of a host, the best that a worker found while others started beside it."""
        best: dict[str, float] = {}
        for where in (where for seat in self.workers for where in seat.where):
            if where.memcpy_bytes_per_s is not None:
                best[where.node] = max(best.get(where.node, 0.0), where.memcpy_bytes_per_s)
        return min(best.values(), default=None)

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """Of cells that have left outputs, those whose files are not all with the workers that stored them."""
        return [cell for cell in cells if self._job.hosts[0].inputs == "cache" and not self._has(cell)]

    def source(self, index: int) -> CacheSource:
        """Where a worker's caches lie."""
        seat = self.workers[index]
        where, actor = seat.where[0], seat.actors[0]
        assert where.folder is not None
        return CacheSource(node=where.node, folder=where.folder, worker=actor)

    def close(self, *, keeps_caches: bool = False) -> None:
        """End all processes; files outlive a process that is killed, so they are freed before or after.

        Args:
            keeps_caches: leave them for whoever goes on with the run.
        """
        places = [where for seat in self.workers for where in seat.where]
        folders = {where.folder: where.node for where in places if where.folder}
        if folders and not keeps_caches:
            closing = [actor.close.remote() for seat in self.workers for actor in seat.actors]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for seat in (*self.workers, *self.feeders):
            seat.end()
        for folder, node in folders.items():
            if node == ray.util.get_node_ip_address() and not keeps_caches:
                shutil.rmtree(folder, ignore_errors=True)

    def start_group(self, index: int, beginning: Beginning) -> list[Actor]:
        """A worker's processes: one, or all its replicas, which have to find each other."""
        spec = self._job.hosts[index]
        actors = [
            start_worker(
                spec,
                index,
                self._group,
                bundle=row[index],
                beginning=beginning,
                replica=replica,
                jemalloc=self._jemalloc,
            )
            for replica, row in enumerate(self._rows)
        ]
        if len(actors) > 1:
            address = actors[0].open_group.remote()
            self._meetings += [actor.join_group.remote(address) for actor in actors]
        return actors

    def start_feeder(self, index: int, beginning: Beginning) -> list[Actor]:
        """A data worker's process."""
        job, config = self._job, self._job.hosts[0].config
        options = _options(self._group, self._feeder_bundle(index), cpus=1.0, gpus=0.0)
        actor = ray.remote(DataWorker).options(**options)
        strikes = Strikes(beginning.faults, process=beginning.process)
        offers = beginning.offers
        return [actor.remote(job.hosts[0].run, config, job.info, job.dataset, strikes, offers=offers)]

    def _has(self, cell: Cell) -> bool:
        seat = next(seat for seat in self.workers if cell.stage in self._job.hosts[seat.index].stages)
        return is_whole(cell.stage, cell.lap, expected=self._caches.sha256, found=seat.where[0].whole)

    def _worker(self, index: int) -> StageSeat:
        spec, job = self._job.hosts[index], self._job
        recovery = spec.config.recovery
        faults = planned(job.faults, worker=index, stages=spec.stages, attempt=job.attempt)
        offers = self._offers(index + 1, [row[index] for row in self._rows])
        beginning = Beginning(faults=faults, caches=self._caches, offers=offers)
        own = {stage: job.initial[stage] for stage in spec.stages if stage in job.initial}
        if own:
            beginning = replace(beginning, initial=(ray.put(own),))
        state = {stage: dict(job.resumed.states[stage]) for stage in spec.stages if stage in job.resumed.states}
        if state:
            resumed = WorkerState(arrays=state, opened=self._caches.opened)
            beginning = replace(beginning, state=(ray.put(resumed),))
        return StageSeat(
            index,
            kept_bytes=recovery.kept_bytes,
            source=self.source,
            name=f"worker {index} (stages {spec.stages.start} to {spec.stages.stop - 1})",
            start=lambda beginning: self.start_group(index, beginning),
            events=self.events,
            deadline=Deadline(recovery.deadline_s),
            window=num_threads(spec.config) - 1,
            beginning=beginning,
        )

    def _feeder(self, index: int) -> DataSeat:
        job, config = self._job, self._job.hosts[0].config
        return DataSeat(
            index,
            shares=config.replicas,
            name=f"data worker {index - len(job.hosts)}",
            start=lambda beginning: self.start_feeder(index, beginning),
            events=self.events,
            deadline=Deadline(config.recovery.deadline_s),
            window=MOST_AHEAD,
            beginning=Beginning(
                faults=planned(job.faults, worker=index, stages=(), attempt=job.attempt),
                offers=self._offers(0, [self._feeder_bundle(index)] * len(self._rows)),
            ),
        )

    def _feeder_bundle(self, index: int) -> int:
        return self._num_bundles + index - len(self._job.hosts)

    def _offers(self, receiver: int, senders: Sequence[int]) -> frozenset[int]:
        """The replicas of a worker that are offered their share: between two nodes, unless always.

        Args:
            receiver: the worker.
            senders: the bundle of each replica's sender.
        """
        hosts = self._job.hosts
        if receiver == len(hosts) or hosts[receiver].stages.start not in self._offered:
            return frozenset()
        always = hosts[0].config.channel.transport == "worker"
        ends = enumerate(zip(senders, (row[receiver] for row in self._rows), strict=True))
        at = self._addresses
        return frozenset(replica for replica, (sender, own) in ends if always or at[sender] != at[own])

    def _ready(self, seat: StageSeat | DataSeat, answer: ObjectRef) -> Any:
        try:
            return ray.get(answer)
        except RayTaskError as error:
            raise cause(error) from None
        except RayActorError as error:
            for address in self.nodes.lost().values():
                who = f"node {address} with {seat.name}"
                raise AttemptLostError("node_died", who, in_one_line(error)) from None
            raise WorkerLostError(f"{seat.name}: its process ended: {in_one_line(error)}") from None


@contextmanager
def crew(job: Job, group: PlacementGroup, *, jemalloc: str | None, offered: Collection[int] = ()) -> Iterator[Crew]:
    """A crew that is ready, as for `Crew`; none of its processes is left when the block ends."""
    people = Crew(job, group, jemalloc=jemalloc, offered=offered)
    keeps_caches = False
    try:
        people.await_ready()
        yield people
    except (AttemptLostError, PreemptedError):
        keeps_caches = job.keeps_caches
        raise
    finally:
        people.close(keeps_caches=keeps_caches)


def start_worker(
    spec: HostSpec,
    index: int,
    group: PlacementGroup,
    *,
    bundle: int,
    beginning: Beginning | None = None,
    replica: int = 0,
    jemalloc: str | None,
) -> Actor:
    """A StageWorker in a bundle of the group, not yet ready."""
    config = spec.config
    environment = dict(environment_of(config, jemalloc))
    options = _options(group, bundle, cpus=config.resources.cpus_per_worker, gpus=config.resources.gpus_per_worker)
    threads = {"max_concurrency": num_threads(config)}
    worker = ray.remote(StageWorker).options(**options, **threads, runtime_env={"env_vars": environment})
    return worker.remote(spec, index, beginning or Beginning(), replica)


def environment_of(config: Config, jemalloc: str | None) -> Mapping[str, str]:
    """A worker's. Of what one with a GPU allocates little is the process's own: glibc does."""
    return keeping_memory(None if config.resources.gpus_per_worker else jemalloc)


def num_threads(config: Config) -> int:
    """Calls that fetch or put wait in threads of their own: as many as may be in flight, and one for other calls."""
    return config.data.prefetch * config.data.workers + config.channel.max_in_flight + 1


def same(collected: Sequence[Any]) -> State:
    """The final weights, which the first replica has handed out and the others have given the digests of.

    Raises:
        DistblockError: they are not all the same.
    """
    state, *others = collected
    for stage, arrays in state.items():
        expected = arrays_sha256(arrays)
        for replica, digests in enumerate(others, start=1):
            if digests[stage] != expected:
                raise DistblockError(
                    f"stage {stage}: replica {replica} has come to other weights than replica 0; does the network keep"
                    " a random state or a counter of its own? distblock verify looks for it"
                )
    return state


def cause(error: RayTaskError) -> BaseException:
    """The exception as the worker raised it, without Ray's wrapping."""
    return error.cause if isinstance(error.cause, DistblockError) else error


def in_one_line(error: BaseException) -> str:
    """An error's text, not too long."""
    return " ".join(str(error).split())[:500]


def _options(group: PlacementGroup, bundle: int, *, cpus: float, gpus: float) -> dict[str, Any]:
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
    return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": strategy}
