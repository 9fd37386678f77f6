"""When each microbatch was where: rows of ``timeline.parquet``, the source of ``trace.json``.

A row a microbatch and worker, of the run's first and last ones: a long run has more than anyone can look at. Workers
tell times by their own hosts' clocks. A call's causes are no later than its effects: what a worker does begins after
the driver's call was sent, and ends before the driver is told; a clock that contradicts this is set right by the middle
of what these bounds leave.

Source of the bounds: Mills 1991, "Internet time synchronization: the Network Time Protocol".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa

from distblock.config import FORMAT_VERSION
from distblock.messages import DataReport, Handling, WorkerReport

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

_Row = dict[str, float | int | str]


class Timeline:
    """The rows of a run so far."""

    def __init__(self) -> None:
        self._first: list[_Row] = []
        self._last: deque[_Row] = deque(maxlen=LAST)
        self._begun_s: float | None = None

    def record(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        """Keep one."""
        if report.passage is None:
            return
        item = report.item
        if self._begun_s is None:
            self._begun_s = handling.ready_s
        row: _Row = {
            **asdict(report.passage),
            **asdict(handling),
            "worker": report.worker if isinstance(report, WorkerReport) else handling.worker,
            "stage": report.stages[0].stage if isinstance(report, WorkerReport) else -1,
            "lap": item.lap,
            "number": item.number,
            "epoch": item.epoch,
            "index": item.index,
            "num_samples": item.num_samples,
            "node": report.node,
            "purpose": item.purpose,
            "part": item.part,
        }
        (self._first if len(self._first) < FIRST else self._last).append(row)

    def table(self) -> pa.Table:
        """The rows, in the order in which they were told."""
        rows = [*self._first, *self._last]
        begun_s = self._begun_s or 0.0
        nodes = {row["node"] for row in rows}
        ahead_s = {node: _ahead_s([row for row in rows if row["node"] == node]) for node in nodes}
        moved = [_moved(_moved(row, _HERE, begun_s), _THERE, begun_s + ahead_s[row["node"]]) for row in rows]
        return pa.Table.from_pylist(moved, schema=TIMELINE_SCHEMA)


def _ahead_s(rows: list[_Row]) -> float:
    """Seconds by which a node's clock is ahead of the driver's; 0 where nothing speaks against that."""
    least = max(float(row["stored_s"]) - float(row["told_s"]) for row in rows)
    most = min(float(row["asked_s"]) - float(row["sent_s"]) for row in rows)
    return 0.0 if least <= 0.0 <= most else (least + most) / 2


def _moved(row: _Row, names: Iterable[str], by_s: float) -> _Row:
    return {**row, **{name: float(row[name]) - by_s for name in names}}
