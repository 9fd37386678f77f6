"""One stage of a plan that is tried, in a process of its own: some steps, beside the other processes'."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from threading import Barrier
from typing import Protocol

import numpy as np
import torch

from distblock.codecs.cast import num_bytes
from distblock.learning.host import Host, HostSpec
from distblock.learning.memory import PeakMemory
from distblock.learning.replicas import PeersGoneError, Replicas
from distblock.messages import Item
from distblock.planning.inputs import entering
from distblock.planning.layout import Rehearsed

SECONDS = 3.0
"""That all stages go on for, so that none has the machine to itself."""

LEAST = 5
"""Steps that count, however long they take."""

WARM_UP = 2

UNDISTURBED = 0.1
"""The share of all steps, the quickest, that nobody else's computing is held to have slowed."""

PATIENCE_S = 300.0
"""In which all processes have to be ready."""

HERE = "127.0.0.1"


class Peers(Replicas, Protocol):
    """Replicas in processes of their own, such as a `distblock.runtime.group.Group`."""

    def open(self) -> tuple[str, int]:
        """Let the others come: the address to join at."""
        ...

    def join(self, host: str, port: int) -> None:
        """Meet the others."""
        ...

    def leave(self) -> None:
        """Whoever waits for this one waits no longer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process is told.

    Attributes:
        spec: the stage, as if nobody shared it.
        num_samples: of a microbatch, the process's share.
        peers: makes it one of those that share the stage; None: nobody does, or they exchange nothing.
        replica: which of them.
        count: how many there are.
    """

    spec: HostSpec
    num_samples: int
    peers: Callable[..., Peers] | None = None
    replica: int = 0
    count: int = 1

    @property
    def stage(self) -> int:
        """Its number."""
        return self.spec.stages.start


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the processes of one wave wait for each other.

    Attributes:
        ready: all of them.
        addresses: by stage: where its replicas join, once for each; None: nowhere.
    """

    ready: Barrier
    addresses: Mapping[int, SimpleQueue[tuple[str, int] | None]]


_meeting: Meeting | None = None


def meet_at(meeting: Meeting) -> None:
    """A process begins."""
    global _meeting
    _meeting = meeting


def perform(task: Task) -> Rehearsed:
    """In a process of its own.

    Raises:
        BrokenBarrierError: another process was not ready in time, or failed.
        PeerLostError: another replica failed.
    """
    assert _meeting is not None
    torch.set_num_threads(task.spec.config.resources.threads_per_worker)
    before_bytes = PeakMemory().so_far()
    try:
        trial = _Trial(task)
    except BaseException:
        _meeting.ready.abort()
        raise
    _meeting.ready.wait(PATIENCE_S)
    try:
        trial.meet(_meeting)
        taken_s = trial.steps_s()
    finally:
        trial.leave()
    # Whoever is held up holds other replicas up, which a median would not see.
    middle = statistics.median if task.peers is None else statistics.mean
    return Rehearsed(
        step_s=middle(taken_s),
        undisturbed_s=float(np.quantile(taken_s, UNDISTURBED)),
        memory_bytes=trial.memory_bytes(before_bytes),
    )


class _Trial:
    """A stage that is built, and what enters it."""

    def __init__(self, task: Task) -> None:
        spec = task.spec
        self._task = task
        self._is_on_gpu = spec.device.type == "cuda"
        self._peers = task.peers and task.peers(replica=task.replica, count=task.count, node=HERE, device=spec.device)
        self._features = entering(
            spec.config,
            spec.problem,
            first=spec.blueprint.partition.stages[task.stage].start,
            num_samples=task.num_samples,
            device=spec.device,
            build=spec.build,
        )
        if self._is_on_gpu:
            torch.cuda.reset_peak_memory_stats(spec.device)
        self._host = Host(spec, clock=time.perf_counter, replicas=self._peers)
        self._labels = torch.zeros(task.num_samples, dtype=torch.int64, device=spec.device)

    def meet(self, meeting: Meeting) -> None:
        """The other replicas, of which the first says where."""
        if self._peers is None:
            return
        addresses = meeting.addresses[self._task.stage]
        if self._task.replica == 0:
            address = None
            try:
                address = self._peers.open()
            finally:
                for _ in range(self._task.count):
                    addresses.put(address)
        address = addresses.get()
        if address is None:
            raise PeersGoneError("the first replica failed")
        self._peers.join(*address)

    def leave(self) -> None:
        """The other replicas."""
        if self._peers is not None:
            self._peers.leave()

    def steps_s(self) -> list[float]:
        """Seconds of each step: the processor's on a CPU with one thread, unless it waits for others."""
        is_own = not self._is_on_gpu and self._peers is None and torch.get_num_threads() == 1
        clock = time.thread_time if is_own else time.perf_counter
        taken: list[float] = []
        ends_s = time.perf_counter() + SECONDS
        while self._goes_on(len(taken) < WARM_UP + LEAST or time.perf_counter() < ends_s):
            begun_s = clock()
            self._step(len(taken))
            taken.append(clock() - begun_s)
        return taken[WARM_UP:]

    def _goes_on(self, wants: bool) -> bool:
        """Replicas go on together, as long as one of them wants to."""
        if self._peers is None:
            return wants
        self._peers.meet()
        return bool(self._peers.add([torch.full((1,), float(wants), device=self._task.spec.device)]))

    def _step(self, number: int) -> None:
        self._host.work(Item.of_batch(number, self._task.num_samples), self._features, self._labels)
        if self._is_on_gpu:
            torch.cuda.synchronize(self._host.device)

    def memory_bytes(self, before_bytes: int) -> float:
        """By which the process has grown, or that lies on its GPU."""
        if self._is_on_gpu:
            return self._host.peak_memory_bytes()
        # A worker builds the network, too, but what enters it lies in the object store, or counts as what arrives.
        return self._host.peak_memory_bytes() - before_bytes - num_bytes(self._features)
