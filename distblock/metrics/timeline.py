"""When each microbatch was where: rows of ``timeline.parquet``, the source of ``trace.json``.

A row a microbatch and worker, of the run's first and last ones: a long run has more than anyone can look at. Workers
tell times by their own hosts' clocks. A call's causes are no later than its effects: what a worker does begins after
the driver's call was sent, and ends before the driver is told; a clock that contradicts this is set right by the middle
of what these bounds leave.

Source of the bounds: Mills 1991, "Internet time synchronization: the Network Time Protocol".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from distblock.config import FORMAT_VERSION
from distblock.messages import DataReport, Handling, Item, Passage, WorkerReport

FIRST, LAST = 1_000, 9_000
"""Rows that are kept: of the run's beginning, and of its end so far."""

_NUMBERS = ("worker", "stage", "lap", "number", "epoch", "index", "num_samples", "wire_bytes")
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
``worker``: data workers count down from -1. ``stage``: the first one it hosts; -1 at a data worker."""

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a row is made of, once it is asked for: recording is on the driver's way, making rows is not."""

    worker: int
    stage: int
    node: str
    item: Item
    passage: Passage
    handling: Handling

    def row(self) -> _Row:
        item = self.item
        return {
            **asdict(self.passage),
            **asdict(self.handling),
            "worker": self.worker,
            "stage": self.stage,
            "lap": item.lap,
            "number": item.number,
            "epoch": item.epoch,
            "index": item.index,
            "num_samples": item.num_samples,
            "node": self.node,
            "purpose": item.purpose,
            "part": item.part,
        }


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

    def table(self) -> pa.Table:
        """The rows, in the order in which they were told."""
        rows = [kept.row() for kept in (*self._first, *self._last)]
        begun_s = rows[0]["ready_s"] if rows else 0.0
        nodes = {row["node"] for row in rows}
        ahead_s = {node: _ahead_s([row for row in rows if row["node"] == node]) for node in nodes}
        for row in rows:
            row.update({name: row[name] - begun_s for name in _HERE})
            row.update({name: row[name] - begun_s - ahead_s[row["node"]] for name in _THERE})
        return pa.Table.from_pylist(rows, schema=TIMELINE_SCHEMA)


def _ahead_s(rows: Sequence[_Row]) -> float:
    """Seconds by which a node's clock is ahead of the driver's; 0 where nothing speaks against that."""
    least = max(row["stored_s"] - row["told_s"] for row in rows)
    most = min(row["asked_s"] - row["sent_s"] for row in rows)
    return 0.0 if least <= 0.0 <= most else (least + most) / 2
