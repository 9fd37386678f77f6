"""Streams of calls: a lane's next call begins, at the other worker, when its last one has ended, as in a pipeline."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import ObjectRef

from distblock.runtime.seats import when_all

Value = Sequence[ObjectRef]
Ask = Callable[[int, Value, tuple[Any, ...]], tuple[Value, ObjectRef]]
"""Begins call ``n`` of a lane with the references that its last one has left, and its report if there was one; gives
the references that it will leave, and the one to its report."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Calls that have ended.

    Attributes:
        reports: of each.
        calls_s: seconds from asking for each to its report.
        wall_s: of all, from the end of each lane's first call, which does not count.
    """

    reports: list[Any]
    calls_s: list[float]
    wall_s: float


@dataclass(frozen=True, slots=True)
class _Ended:
    """A call."""

    lane: int
    turn: int
    leaving: Value
    seconds: float
    reports: tuple[Any, ...]
    failure: BaseException | None


def stream(ask: Ask, *, lanes: int, calls: int) -> Streamed:
    """Keep so many lanes going until so many calls have ended, beside the first of each lane."""
    ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
    left = lanes + calls

    def begin(lane: int, turn: int, entering: Value, reports: tuple[Any, ...] = ()) -> None:
        nonlocal left
        if left:
            left -= 1
            begun_s = time.perf_counter()
            leaving, report = ask(lane + turn, entering, reports)
            when_all([report], partial(tell, lane, turn, leaving, begun_s))

    def tell(
        lane: int, turn: int, leaving: Value, begun_s: float, reports: tuple[Any, ...], failure: BaseException | None
    ) -> None:
        ended.put(_Ended(lane, turn, leaving, time.perf_counter() - begun_s, reports, failure))

    def follow(end: _Ended) -> _Ended:
        if end.failure is not None:
            raise end.failure
        begin(end.lane, end.turn + 1, end.leaving, end.reports)
        return end

    for lane in range(lanes):
        begin(lane, 0, ())
    firsts = [ended.get() for _ in range(lanes)]
    begun_s = time.perf_counter()
    for first in firsts:
        follow(first)
    ends = [follow(ended.get()) for _ in range(calls)]
    return Streamed(
        reports=[report for end in ends for report in end.reports],
        calls_s=[end.seconds for end in ends],
        wall_s=time.perf_counter() - begun_s,
    )
