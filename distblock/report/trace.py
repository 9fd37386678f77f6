"""trace.json: a run's timeline as Chrome's trace format, which opens in Perfetto (ui.perfetto.dev, "Open trace file").

A process a worker, with a row for what it computes and one each for what it fetches and stores beside that; arrows
follow each microbatch from worker to worker.

Source: "Trace Event Format", Google, 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle, pairwise
from typing import Any

import pyarrow as pa

_ROWS = {"compute": 0, "fetch": 1, "store": 2}
_DATA_WORKERS = 10_000
"""Where the numbers of data workers' processes begin: a process has no negative one."""

_Event = dict[str, Any]


def trace(timeline: pa.Table) -> dict[str, Any]:
    """The content of ``trace.json``.

    Args:
        timeline: rows of ``timeline.parquet``.
    """
    rows = timeline.to_pylist()
    workers = sorted({(row["worker"], row["stage"], row["node"]) for row in rows})
    events = [event for worker in workers for event in _names(*worker)]
    events += [event for row in rows for event in _slices(row)]
    events += _arrows(rows)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _names(worker: int, stage: int, node: str) -> Iterator[_Event]:
    name = f"worker {worker}, from stage {stage}" if worker >= 0 else f"data worker {-1 - worker}"
    yield {"ph": "M", "name": "process_name", "pid": _process(worker), "args": {"name": f"{name}, on {node}"}}
    # Data come first.
    yield {"ph": "M", "name": "process_sort_index", "pid": _process(worker), "args": {"sort_index": worker}}
    for name, thread in _ROWS.items():
        yield {"ph": "M", "name": "thread_name", "pid": _process(worker), "tid": thread, "args": {"name": name}}


def _slices(row: Mapping[str, Any]) -> Iterator[_Event]:
    told = ("number", "epoch", "index", "num_samples", "wire_bytes", "backpressure_s")
    arguments = {name: row[name] for name in told}
    spans = {
        "fetch": ("asked_s", "decoded_s"),
        "compute": ("started_s", "finished_s"),
        "store": ("finished_s", "stored_s"),
    }
    for name, (begin, end) in spans.items():
        if row[end] > row[begin]:
            yield {
                "ph": "X",
                "name": f"{row['purpose']} {row['number']}" if name == "compute" else f"{name} {row['number']}",
                "cat": name,
                "pid": _process(row["worker"]),
                "tid": _ROWS[name],
                "ts": _us(row[begin]),
                "dur": _us(row[end] - row[begin]),
                "args": arguments,
            }


def _arrows(rows: list[dict[str, Any]]) -> Iterator[_Event]:
    """From the end of a microbatch's computing at one worker to its beginning at the next."""
    ways: dict[tuple[int, int, str], dict[int, list[dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda row: (row["stage"], row["worker"])):
        way = ways.setdefault((row["number"], row["lap"], row["purpose"]), {})
        way.setdefault(row["stage"], []).append(row)
    arrow = 0
    for way in ways.values():
        for before, after in pairwise(way.values()):
            # Each replica sends to its own neighbour; one data worker to all.
            for sender, receiver in zip(cycle(before), after, strict=False):
                arrow += 1
                yield _end("s", arrow, sender["worker"], sender["finished_s"])
                yield {**_end("f", arrow, receiver["worker"], receiver["started_s"]), "bp": "e"}


def _end(kind: str, arrow: int, worker: int, at_s: float) -> _Event:
    # An arrow belongs to the slice around it.
    at = _us(at_s) - 1 if kind == "s" else _us(at_s)
    common = {"name": "hop", "cat": "hop", "tid": _ROWS["compute"]}
    return {**common, "ph": kind, "id": arrow, "pid": _process(worker), "ts": at}


def _process(worker: int) -> int:
    return worker if worker >= 0 else _DATA_WORKERS - 1 - worker


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
