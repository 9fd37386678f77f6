"""Faults on purpose: a worker that dies or freezes at an exact moment. For tests and benchmarks of recovery."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["kill", "segfault", "freeze"]
Moment = Literal["before", "computed", "stored"]

_SIGNALS = {"kill": signal.SIGKILL, "segfault": signal.SIGSEGV, "freeze": signal.SIGSTOP}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        worker: index of the worker; data workers follow the workers.
        turn: number of its call at which it strikes.
        kind: killed, as by the kernel where memory is out; a segmentation fault; stopped.
        moment: before the call is computed, after it, or after its output has been stored as well.
        again: it strikes whoever takes the worker's place, too.
    """

    worker: int
    turn: int
    kind: FaultKind = "kill"
    moment: Moment = "computed"
    again: bool = False


def strike(faults: Sequence[Fault], turn: int, moment: Moment) -> None:
    """End or stop this process, if that is what is planned."""
    for fault in faults:
        if (fault.turn, fault.moment) == (turn, moment):
            os.kill(os.getpid(), _SIGNALS[fault.kind])
