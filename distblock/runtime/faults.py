"""Faults on purpose: a worker that dies, freezes or loses its device at an exact moment, for tests and benchmarks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

FaultKind = Literal["kill", "segfault", "freeze", "hang", "device"]
Moment = Literal["before", "computed", "stored"]

_SIGNALS = {"kill": signal.SIGKILL, "segfault": signal.SIGSEGV, "freeze": signal.SIGSTOP}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        worker: index of the worker; data workers follow the workers.
        turn: number of its call at which it strikes.
        kind: killed, as by the kernel where memory is out; a segmentation fault; stopped; a thread that waits for ever
            in a process that lives; a device that fails.
        moment: before the call is computed, after it, or after its output has been stored as well.
        again: it strikes whoever takes the worker's place, too.
    """

    worker: int
    turn: int
    kind: FaultKind = "kill"
    moment: Moment = "computed"
    again: bool = False


def strike(faults: Sequence[Fault], turn: int, moment: Moment) -> None:
    """Strike this process, if that is what is planned."""
    for fault in faults:
        if (fault.turn, fault.moment) != (turn, moment):
            continue
        if fault.kind == "hang":
            threading.Event().wait()
        elif fault.kind == "device":
            raise torch.AcceleratorError("CUDA error: the device is lost (planned)")
        else:
            os.kill(os.getpid(), _SIGNALS[fault.kind])
