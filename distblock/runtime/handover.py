"""What a worker's process begins with, and what it hands out, so that another can take its place."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ray import ObjectRef

from distblock.messages import DataReport, WorkerReport
from distblock.runtime.faults import Fault
from distblock.runtime.transports.outbox import Offer
from distblock.schedule.saving import CacheFiles


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a worker starts from.

    Attributes:
        turn: number of its first call.
        initial: a reference to weights, by stage, then by name; or nothing.
        state: a reference to the `WorkerState` of the process before it; or nothing.
        caches: name of the folder with the run's caches, and what is known of files in it.
        faults: when to die, in tests.
        process: which of the worker's processes in this attempt it is, counted from 0.
        offers: the replicas whose share of what it hands out it offers, see `distblock.runtime.transports`.
    """

    turn: int = 0
    initial: tuple[ObjectRef, ...] = ()
    state: tuple[ObjectRef, ...] = ()
    caches: CacheFiles = field(default_factory=CacheFiles)
    faults: tuple[Fault, ...] = ()
    process: int = 0
    offers: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """A snapshot.

    Attributes:
        arrays: the stages' training state, by stage, then by name.
        opened: names of the cache files that have been opened.
    """

    arrays: dict[int, dict[str, np.ndarray]]
    opened: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotReport:
    """What there is to say of a snapshot.

    Attributes:
        seconds: in which the worker could not compute.
        caches: the worker's finished cache files, and those it has opened.
    """

    seconds: float
    caches: CacheFiles


@dataclass(frozen=True, slots=True)
class Told:
    """What a call says at its end.

    Attributes:
        reports: of each microbatch.
        offers: where each share that it has handed out can be had beside the object store: a worker hands out one, a
            data worker one for each replica.
    """

    reports: tuple[WorkerReport, ...] | tuple[DataReport, ...]
    offers: tuple[Offer | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """Where a worker is.

    Attributes:
        node: address of the host.
        node_id: Ray's name of the node, which is new where a node starts again at the same address.
        folder: the path of its caches there.
        whole: names of the cache files that it has found whole.
        memcpy_bytes_per_s: of that host; None: not measured.
    """

    node: str
    node_id: str
    folder: str | None = None
    whole: frozenset[str] = frozenset()
    memcpy_bytes_per_s: float | None = None
