"""trace.json: a run's timeline as Chrome's trace format, which opens in Perfetto (ui.perfetto.dev, "Open trace file").

A process a worker, with a row for what it computes and as many for what it fetches and stores beside that as it does at
once; arrows follow each microbatch from worker to worker.

Source: "Trace Event Format", Google, 2016.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import pyarrow as pa

_FIRST_ROWS = {"compute": 0, "fetch": 100_000, "store": 200_000}
"""Threads of a process, which viewers show as rows. What overlaps needs a row of its own, or Perfetto drops it."""

_DATA_WORKERS = 10_000
"""Where the numbers of data workers' processes begin: a process has no negative one."""

_Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Something that a worker did for a microbatch, in whole microseconds."""

    kind: str
    begin_us: int
    end_us: int
    row: Mapping[str, Any]


def trace(timeline: pa.Table) -> dict[str, Any]:
    """The content of ``trace.json``.

    Args:
        timeline: rows of ``timeline.parquet``.
    """
    rows = timeline.to_pylist()
    by_worker: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_worker.setdefault(row["worker"], []).append(row)
    events: list[_Event] = []
    for worker, own in sorted(by_worker.items()):
        spans = [span for row in own for span in _spans(row)]
        placed = [(span, place) for kind in _FIRST_ROWS for span, place in _in_rows(kind, spans)]
        # Where stages train one by one, a worker is entered at several.
        stage, node = min((row["stage"], row["node"]) for row in own)
        first = {(kind, 0) for kind in _FIRST_ROWS}
        events += _names(worker, stage, node, first | {(span.kind, place) for span, place in placed})
        events += [_slice(span, place) for span, place in placed]
    events += _arrows(rows)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _names(worker: int, stage: int, node: str, rows: Iterable[tuple[str, int]]) -> Iterator[_Event]:
    name = f"worker {worker}, from stage {stage}" if worker >= 0 else f"data worker {-1 - worker}"
    yield {"ph": "M", "name": "process_name", "pid": _process(worker), "args": {"name": f"{name}, on {node}"}}
    # Data come first.
    yield {"ph": "M", "name": "process_sort_index", "pid": _process(worker), "args": {"sort_index": worker}}
    for thread, kind, place in sorted((_thread(kind, place), kind, place) for kind, place in rows):
        about = {"pid": _process(worker), "tid": thread}
        yield {"ph": "M", "name": "thread_name", **about, "args": {"name": f"{kind} {place + 1}" if place else kind}}
        yield {"ph": "M", "name": "thread_sort_index", **about, "args": {"sort_index": thread}}


def _spans(row: Mapping[str, Any]) -> Iterator[_Span]:
    spans = {
        "fetch": ("asked_s", "decoded_s"),
        "compute": ("started_s", "finished_s"),
        "store": ("finished_s", "stored_s"),
    }
    for kind, (begin, end) in spans.items():
        if row[end] > row[begin]:
            yield _Span(kind=kind, begin_us=_us(row[begin]), end_us=_us(row[end]), row=row)


def _in_rows(kind: str, spans: Iterable[_Span]) -> Iterator[tuple[_Span, int]]:
    """Each span in the first row that is free by then."""
    free_us: list[int] = []
    for span in sorted((span for span in spans if span.kind == kind), key=lambda span: (span.begin_us, span.end_us)):
        place = next((place for place, at_us in enumerate(free_us) if at_us <= span.begin_us), len(free_us))
        free_us[place : place + 1] = [span.end_us]
        yield span, place


def _thread(kind: str, place: int) -> int:
    return _FIRST_ROWS[kind] + place


def _slice(span: _Span, place: int) -> _Event:
    row = span.row
    told = ("number", "epoch", "index", "num_samples", "wire_bytes", "backpressure_s")
    return {
        "ph": "X",
        "name": f"{row['purpose']} {row['number']}" if span.kind == "compute" else f"{span.kind} {row['number']}",
        "cat": span.kind,
        "pid": _process(row["worker"]),
        "tid": _thread(span.kind, place),
        "ts": span.begin_us,
        "dur": span.end_us - span.begin_us,
        "args": {name: row[name] for name in told},
    }


def _arrows(rows: list[dict[str, Any]]) -> Iterator[_Event]:
    """From the end of a microbatch's computing at one worker to its beginning at the next."""
    ways: dict[tuple[Any, ...], dict[int, list[dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda row: (row["stage"], row["worker"])):
        way = ways.setdefault((row["number"], row["lap"], row["purpose"], row.get("target")), {})
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
    common = {"name": "hop", "cat": "hop", "tid": _FIRST_ROWS["compute"]}
    return {**common, "ph": kind, "id": arrow, "pid": _process(worker), "ts": at}


def _process(worker: int) -> int:
    return worker if worker >= 0 else _DATA_WORKERS - 1 - worker


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
