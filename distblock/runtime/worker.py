"""StageWorker: the actor that hosts a stage, or several consecutive ones.

A reference passed as an argument is fetched by Ray before the method starts: early, but nobody sees what it cost. Here
it comes inside a list and stays a reference; the call's own thread fetches it, timed, while another call computes. All
computing happens in one further thread, in stream order. The method is a generator: what it yields first is stored by
Ray before it goes on, so the time between the two is what storing cost. The caller, the driver, owns both values; they
outlive this process. What goes to another node is offered to its receiver past the object store, too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayActorError

from distblock.codecs.memcpy import memcpy_bytes_per_s
from distblock.codecs.payload import Payload
from distblock.codecs.staging import Staging
from distblock.errors import DeviceLostError, InputLostError, StageError
from distblock.learning.host import Host, HostSpec, explain, stage_error
from distblock.learning.stage import arrays_sha256
from distblock.messages import Inputs, Item, Parcel
from distblock.runtime.caches import CacheSource
from distblock.runtime.faults import Strikes
from distblock.runtime.group import Group
from distblock.runtime.handover import Beginning, Ready, SnapshotReport, Told, WorkerState
from distblock.runtime.intake import Arrived, Fetched, Intake
from distblock.runtime.reports import Computed, Done, Reporter
from distblock.runtime.reuse import Reuse
from distblock.runtime.transports.choice import open_outbox
from distblock.runtime.transports.outbox import Offer
from distblock.runtime.turns import Turns
from distblock.schedule.saving import CacheFiles
from distblock.scratch.features import FeatureCache
from distblock.scratch.shelf import DiskShelf

T = TypeVar("T")

LOST = (ObjectLostError, RayActorError)
"""What a fetch raises where an object, or the worker that it is asked of, has gone with its node."""


class StageWorker:
    """The actor class; made an actor by the driver.

    Its calls are numbered, and it computes in that order.

    Args:
        spec: the stages to host.
        index: the worker's place among the workers.
        beginning: what it starts from.
        replica: which of its stages' replicas it is.
    """

    def __init__(self, spec: HostSpec, index: int, beginning: Beginning, replica: int = 0) -> None:
        self._spec = spec
        self._replica = replica
        self._clock = time.perf_counter
        epoch_s = time.time() - self._clock()
        num_threads = spec.config.resources.threads_per_worker
        torch.set_num_threads(num_threads)
        # Between two kernels the computing thread needs the interpreter; it would wait up to 5 ms for a fetching one.
        sys.setswitchinterval(0.0005)
        self._computing = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(num_threads,))
        self._cache = None
        if spec.inputs == "cache":
            caches = beginning.caches
            self._cache = FeatureCache(spec.config.regime.cache_dir, run=spec.run, folder=caches.folder)
            # Whoever takes over from a process of the same run need not read all its files.
            self._cache.adopt(caches.sha256, unread=beginning.turn > 0)
        # A worker that trains its stages one after the other holds one at a time.
        one_by_one = len(spec.stages) > 1 and spec.config.regime.name != "wavefront"
        shelf = DiskShelf(self._cache.folder) if self._cache is not None and one_by_one else None
        self._node = ray.util.get_node_ip_address()
        count = spec.config.replicas
        self._group = None
        if count > 1:
            self._group = Group(replica=replica, count=count, node=self._node, device=spec.device)
        self._host = Host(spec, clock=self._clock, shelf=shelf, replicas=self._group)
        self._reporter = Reporter(
            self._host,
            index * count + replica,
            node=self._node,
            records=spec.config.metrics.record,
            epoch_s=epoch_s,
        )
        self._staging = Staging(spec.device)
        self._turns = Turns(beginning.turn)
        self._strikes = Strikes(beginning.faults, process=beginning.process, replica=replica)
        self._reuse = Reuse(spec, self._host, self._computing, clock=self._clock)
        self._intake = Intake(
            spec,
            staging=self._staging,
            codec=self._host.edges[spec.stages.start],
            cache=self._cache,
            node=self._node,
            clock=self._clock,
        )
        self._outgoing = self._host.edges.get(spec.stages.stop)
        # Where parcels are dropped, nobody waits for a credit: the next is there before the oldest has been asked for.
        most = spec.config.channel.max_in_flight * (2 if spec.config.regime.name == "asynchronous" else 1)
        self._outbox = open_outbox(spec.config, self._node, most=most) if replica in beginning.offers else None
        self._begin_from(beginning)
        self._failure: BaseException | None = None
        self._idle_since_s = self._clock()

    def ready(self) -> Ready:
        """Where it is; called once all is built, and the worker's idle time counts from here."""
        self._idle_since_s = self._clock()
        folder = None if self._cache is None else str(self._cache.folder)
        whole = frozenset() if self._cache is None else frozenset(self._cache.sha256)
        return Ready(
            node=self._node,
            node_id=ray.get_runtime_context().get_node_id(),
            folder=folder,
            whole=whole,
            memcpy_bytes_per_s=memcpy_bytes_per_s(),
        )

    def read_cache(self, name: str, start: int, stop: int) -> np.ndarray:
        """Bytes of a cache file, for a reader on another node; empty past its end."""
        assert self._cache is not None
        return np.fromfile(self._cache.folder / name, dtype=np.uint8, offset=start, count=stop - start)

    def release(self, turn: int, stage: int, lap: int, what: Inputs) -> None:
        """Nobody will ask any more for what the stage left after the lap: its cache, or a copy of its weights."""
        with self._turns.turn(turn):
            releasing = self._submit(self._release, turn, stage, lap, what)
        with self._naming("release"):
            releasing.result()
            self._strikes.strike("stored", turn)

    def open_group(self) -> tuple[str, int]:
        """Where the other replicas find this one."""
        assert self._group is not None
        return self._group.open()

    def join_group(self, address: tuple[str, int]) -> None:
        """Meet the other replicas."""
        assert self._group is not None
        self._group.join(*address)

    def snapshot(self, turn: int) -> Iterator[WorkerState | SnapshotReport | None]:
        """All that another worker needs to go on from here (the same for all replicas: the first hands it out), and
        what there is to say of it."""
        with self._turns.turn(turn):
            taking = self._submit(self._snapshot, turn)
        with self._naming("snapshot"):
            state, report = taking.result()
            yield None if self._replica else state
            self._strikes.strike("stored", turn)
            yield report

    def close(self) -> None:
        """Free what was set aside on this node."""
        if self._cache is not None:
            self._cache.close()

    def hop(
        self,
        parcel: Parcel,
        payloads: list[ObjectRef],
        turn: int,
        source: CacheSource | None = None,
        offer: Offer | None = None,
    ) -> Iterator[tuple[Payload, ...] | Told | None]:
        """Fetch microbatches, pass them through the stages, hand out the outputs (None if last) and then the reports.

        Args:
            parcel: the microbatches.
            payloads: one reference, to what enters; to positions of samples where they come from a cache.
            turn: the call's number.
            source: the cache.
            offer: where what enters can be had beside the object store.

        Raises:
            StageError: a stage failed, or what came was not what was expected.
        """
        at = parcel.items[0]
        try:
            arrived = self._intake.fetch(parcel, payloads[0], source, offer)
            with self._turns.turn(turn):
                self._reuse.expect(len(parcel.items))
                computing = self._submit(self._compute_all, parcel, arrived, turn)
            done = []
            # Encoded as they are computed, each would have the computing thread wait for the interpreter.
            for at, each, computed in zip(parcel.items, arrived.microbatches, computing.result(), strict=True):
                done.append(self._encode(at, each, computed))
            begun_s = self._clock()
            leaving = tuple(each.payload for each in done if each.payload is not None) or None
            left = self._outbox.keep(leaving) if self._outbox is not None and leaving else None
            yield leaving
            stored_s = self._clock()
            for at in parcel.items:
                self._strikes.strike("stored", turn, at)
            reports = self._reporter.reports(parcel, arrived, done, put_s=stored_s - begun_s, stored_s=stored_s)
            yield Told(reports, (left,))
        except StageError as failure:
            self._turns.fail(failure)
            raise
        except Exception as error:
            first = self._spec.stages.start
            is_lost = isinstance(error, LOST)
            failure = InputLostError(first, str(at), explain(error)) if is_lost else stage_error(first, at, error)
            self._turns.fail(failure)
            raise failure from error

    def states(self, turn: int) -> dict[int, dict[str, np.ndarray]] | dict[int, str]:
        """Weights and buffers, by stage, then by name; of further replicas their digests."""
        with self._turns.turn(turn):
            taking = self._submit(self._host.states)
        with self._naming("final weights"):
            states = taking.result()
        if not self._replica:
            return states
        return {stage: arrays_sha256(state) for stage, state in states.items()}

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """A device that fails while no microbatch is computed is named as well."""
        try:
            yield
        except torch.AcceleratorError as error:
            raise DeviceLostError(self._spec.stages.start, what, explain(error)) from error

    def _begin_from(self, beginning: Beginning) -> None:
        for reference in beginning.initial:
            self._host.load(ray.get(reference))
        for reference in beginning.state:
            state: WorkerState = ray.get(reference)
            self._host.load_training_state(state.arrays)
            self._intake.opened.update(state.opened)

    def _submit(self, compute: Callable[..., T], *arguments: Any) -> Future[T]:
        """Queue something for the computing thread."""
        return self._computing.submit(self._unless_failed, compute, *arguments)

    def _unless_failed(self, compute: Callable[..., T], *arguments: Any) -> T:
        """In the computing thread. What was queued behind a failure would go on from a state that lacks a step, and its
        result might be told before the failure is."""
        if self._failure is not None:
            raise self._failure
        try:
            return compute(*arguments)
        except BaseException as failure:
            self._failure = failure
            raise

    def _snapshot(self, turn: int) -> tuple[WorkerState, SnapshotReport]:
        self._strikes.strike("before", turn)
        begun_s = self._clock()
        opened = frozenset(self._intake.opened)
        sha256 = {} if self._cache is None else dict(self._cache.sha256)
        # It is the same in all replicas.
        state = WorkerState(arrays={} if self._replica else self._host.training_state(), opened=opened)
        caches = CacheFiles(sha256=sha256, opened=opened)
        self._strikes.strike("computed", turn)
        return state, SnapshotReport(seconds=self._clock() - begun_s, caches=caches)

    def _release(self, turn: int, stage: int, lap: int, what: Inputs) -> None:
        self._strikes.strike("before", turn)
        if what == "frozen":
            self._host.release(stage, lap)
        elif self._cache is not None:
            self._cache.release(stage, lap)
        self._strikes.strike("computed", turn)

    def _compute_all(self, parcel: Parcel, arrived: Arrived, turn: int) -> list[Computed]:
        computed = []
        for item, fetched in zip(parcel.items, arrived.microbatches, strict=True):
            try:
                computed.append(self._compute(item, fetched, turn))
            except StageError:
                raise
            except Exception as error:
                raise stage_error(self._spec.stages.start, item, error) from error
        return computed

    def _compute(self, item: Item, fetched: Fetched, turn: int) -> Computed:
        self._strikes.strike("before", turn, item)
        started_s, idle_since_s = self._clock(), self._idle_since_s
        features = self._intake.features(fetched)
        decode_s = 0.0 if fetched.features is not None else self._clock() - started_s
        samples = fetched.microbatch.samples
        work = self._host.work(item, features, fetched.labels, first=fetched.first, samples=samples)
        self._staging.mark()
        reused = self._reuse.fresh(item, features, fetched.labels)
        payload, encode_s = None, 0.0
        if self._outgoing is not None and self._outgoing.remembers:
            worked_s = self._clock()
            payload = self._outgoing.encode(work.features, fetched.labels, fetched.microbatch)
            encode_s = self._clock() - worked_s
        departures = work.departures
        if item.purpose == "store" and item.stage in self._spec.stages:
            assert self._cache is not None
            channel = self._spec.config.channel
            departures += (
                self._cache.store(item, work.features, fetched.labels, channel=channel, staging=self._staging),
            )
        self._idle_since_s = self._clock()
        self._strikes.strike("computed", turn, item)
        return Computed(
            work=work,
            payload=payload,
            decode_s=decode_s,
            encode_s=encode_s,
            departures=departures,
            reused=reused,
            started_s=started_s,
            finished_s=self._idle_since_s,
            idle_since_s=idle_since_s,
        )

    def _encode(self, item: Item, fetched: Fetched, computed: Computed) -> Done:
        begun_s = self._clock()
        payload = computed.payload
        if payload is None and self._outgoing is not None and item.stage not in self._spec.stages:
            payload = self._outgoing.encode(computed.work.features, fetched.labels, fetched.microbatch)
        now_s = self._clock()
        return Done(
            fetched=replace(fetched, decode_s=fetched.decode_s + computed.decode_s),
            computed=computed,
            payload=payload,
            encode_s=now_s - begun_s + computed.encode_s,
            encoded_s=now_s,
        )
