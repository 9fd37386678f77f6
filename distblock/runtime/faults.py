"""Faults on purpose: a worker that dies, freezes or loses its device at an exact moment, for tests and benchmarks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distblock.messages import Item

FaultKind = Literal["kill", "segfault", "freeze", "hang", "device"]
Moment = Literal["before", "computed", "stored"]

_SIGNALS = {"kill": signal.SIGKILL, "segfault": signal.SIGSEGV, "freeze": signal.SIGSTOP}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, at a call of a worker, or at a training microbatch of a stage.

    Attributes:
        worker: index of the worker; data workers follow the workers.
        turn: number of its call at which it strikes.
        stage, epoch, index: instead of these two: the stage, and its training microbatch's place.
        kind: killed, as by the kernel where memory is out; a segmentation fault; stopped; a thread that waits for ever
            in a process that lives; a device that fails.
        moment: before the call is computed, after it, or after its output has been stored as well.
        replica: which of the stage's replicas it strikes.
        process: which of the worker's processes it strikes, counted from 0; None: each of them.
        attempt: in which attempt of the run, counted from 0.
    """

    worker: int | None = None
    turn: int | None = None
    stage: int | None = None
    epoch: int = 0
    index: int = 0
    kind: FaultKind = "kill"
    moment: Moment = "computed"
    replica: int = 0
    process: int | None = 0
    attempt: int = 0


def fail_at(stage: int, epoch: int, index: int, kind: FaultKind, *, moment: Moment = "computed") -> Fault:
    """A fault of whoever hosts a stage, at the stage's training microbatch ``index`` of an epoch, counted from 0."""
    return Fault(stage=stage, epoch=epoch, index=index, kind=kind, moment=moment)


class Strikes:
    """The faults of one process.

    Args:
        faults: of its worker, or of any stage.
        process: which of the worker's processes it is.
        replica: which of its stages' replicas.
    """

    def __init__(self, faults: Sequence[Fault], *, process: int, replica: int = 0) -> None:
        self._faults = [fault for fault in faults if fault.process in (None, process) and fault.replica == replica]

    def strike(self, moment: Moment, turn: int, item: Item | None = None) -> None:
        """Strike this process, if that is what is planned."""
        for fault in self._faults:
            if fault.moment == moment and (fault.turn == turn or (item is not None and _is_at(fault, item))):
                _strike(fault.kind)


def planned(faults: Sequence[Fault], *, worker: int, stages: Sequence[int], attempt: int) -> tuple[Fault, ...]:
    """One worker's faults in one attempt."""
    return tuple(
        fault
        for fault in faults
        if fault.attempt == attempt and (fault.worker == worker if fault.stage is None else fault.stage in stages)
    )


def _is_at(fault: Fault, item: Item) -> bool:
    if fault.stage is None or item.role(fault.stage) != "train":
        return False
    return (fault.epoch, fault.index) == (item.epoch, item.index)


def _strike(kind: FaultKind) -> None:
    if kind == "hang":
        threading.Event().wait()
    elif kind == "device":
        import torch  # whoever has a device has it already; others are to stay small

        raise torch.AcceleratorError("CUDA error: the device is lost (planned)")
    else:
        os.kill(os.getpid(), _SIGNALS[kind])
