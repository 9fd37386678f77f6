"""When each microbatch was where: rows of ``timeline.parquet``, the source of ``trace.json``.

A row a microbatch and worker, of the run's first and last ones: a long run has more than anyone can look at. Workers
tell times by their own hosts' clocks. A call's causes are no later than its effects: what a worker does begins after
the driver's call was sent, and ends before the driver is told; a clock that contradicts this is set right by the middle
of what these bounds leave.

Source of the bounds: Mills 1991, "Internet time synchronization: the Network Time Protocol".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from distblock.config import FORMAT_VERSION
from distblock.messages import DataReport, Handling, Item, Passage, WorkerReport

FIRST, LAST = 1_000, 9_000
"""Rows that are kept: of the run's beginning, and of its end so far."""

_PLACE = ("lap", "number", "epoch", "index", "num_samples")
_NUMBERS = ("worker", "stage", "target", *_PLACE, "wire_bytes")
_TEXTS = ("node", "purpose", "part")
_HERE = ("ready_s", "sent_s", "told_s", "handled_s")
_THERE = ("asked_s", "fetched_s", "decoded_s", "started_s", "finished_s", "encoded_s", "stored_s")

TIMELINE_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in _NUMBERS),
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.float64()) for name in (*_HERE, *_THERE, "backpressure_s")),
    ],
    metadata={"format_version": str(FORMAT_VERSION)},
)
"""Columns of ``timeline.parquet``: of `Handling` and `Passage`, in seconds since the run's start by the driver's clock.
``worker``: data workers count down from -1. ``stage``: the first one it hosts; -1 at a data worker. ``target``: the
stage that the microbatch is for, where stages train one by one, else null."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a row is made of, once it is asked for: recording is on the driver's way, making rows is not."""

    worker: int
    stage: int
    node: str
    item: Item
    passage: Passage
    handling: Handling


_COLUMNS = {
    **{name: attrgetter(name) for name in ("worker", "stage", "node")},
    "target": attrgetter("item.stage"),
    **{name: attrgetter(f"item.{name}") for name in (*_PLACE, "purpose", "part")},
    **{name: attrgetter(f"passage.{name}") for name in (*_THERE, "wire_bytes")},
    **{name: attrgetter(f"handling.{name}") for name in (*_HERE, "backpressure_s")},
}
"""Of what is kept, by column."""


class Timeline:
    """The rows of a run so far."""

    def __init__(self) -> None:
        self._first: list[_Kept] = []
        self._last: deque[_Kept] = deque(maxlen=LAST)

    def record(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        """Keep one."""
        if report.passage is None:
            return
        worker, stage = handling.worker, -1
        if isinstance(report, WorkerReport):
            worker, stage = report.worker, report.stages[0].stage
        kept = _Kept(worker, stage, report.node, report.item, report.passage, handling)
        (self._first if len(self._first) < FIRST else self._last).append(kept)

    def table(self, *, last: int | None = None) -> pa.Table:
        """The rows, in the order in which they were told.

        Args:
            last: so many of the last ones; none: all.
        """
        kept = [*self._first, *self._last][slice(None if last is None else -last, None)]
        columns: dict[str, Any] = {name: list(map(get, kept)) for name, get in _COLUMNS.items()}
        if kept:
            nodes, begun_s = np.array(columns["node"]), kept[0].handling.ready_s
            columns |= {name: np.array(columns[name]) - begun_s for name in (*_HERE, *_THERE)}
            for node in set(columns["node"]):
                own = nodes == node
                ahead_s = _ahead_s({name: columns[name][own] for name in ("stored_s", "told_s", "asked_s", "sent_s")})
                for name in _THERE:
                    columns[name][own] -= ahead_s
        return pa.Table.from_pydict(columns, schema=TIMELINE_SCHEMA)


def _ahead_s(moments: Mapping[str, np.ndarray]) -> float:
    """Seconds by which a node's clock is ahead of the driver's; 0 where nothing speaks against that."""
    least = float(np.max(moments["stored_s"] - moments["told_s"]))
    most = float(np.min(moments["asked_s"] - moments["sent_s"]))
    return 0.0 if least <= 0.0 <= most else (least + most) / 2
