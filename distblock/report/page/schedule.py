"""The schedule as it was planned and as it was measured, at the same scale."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distblock.report.calibration import Recording, place_of
from distblock.report.page.run import Run
from distblock.schedule.replay import Call, replay

SHOWN = 12
"""Calls of the last worker that are drawn, from the run's first one on."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A computation: of which worker (the data's is 0), which microbatch, from when to when, in seconds."""

    place: int
    number: int
    purpose: str
    started_s: float
    finished_s: float


def measured(run: Run) -> list[Bar]:
    """The first computations, by the run's clock from the first one on."""
    assert run.timeline is not None
    replicas = run.config.workers_per_stage
    rows = [row for row in run.timeline.to_pylist() if row["worker"] < 0 or row["worker"] % replicas == 0]
    last = max(row["worker"] for row in rows)
    ends = sorted(row["finished_s"] for row in rows if row["worker"] == last)[:SHOWN]
    begun_s = min(row["started_s"] for row in rows)
    return [
        Bar(
            place=place_of(row["worker"], replicas),
            number=row["number"],
            purpose=row["purpose"],
            started_s=row["started_s"] - begun_s,
            finished_s=row["finished_s"] - begun_s,
        )
        for row in rows
        if row["started_s"] < ends[-1]
    ]


def planned(run: Run) -> list[Bar] | None:
    """Each worker's median computing, hops and driver taking no time; None where the run cannot be told again."""
    found = run.recording
    if found is None:
        return None
    typical = {place: _typical_s(found, place) for place in range(found.num_workers + 1)}

    def call(place: int, parcel: Any) -> Call:
        compute_s = typical[place] * len(parcel.items)
        return Call(send_s=0.0, fetch_s=0.0, compute_s=compute_s, store_s=0.0, reply_s=0.0)

    told = replay(found.pipeline(call=call, driver_microbatch_s=0.0, links={}, parcels=found.parcels[: 2 * SHOWN]))
    return [
        Bar(
            place=span.place,
            number=item.number - found.parcels[0].number,
            purpose=item.purpose,
            started_s=span.started_s + index * typical[span.place],
            finished_s=span.started_s + (index + 1) * typical[span.place],
        )
        for span in told.spans
        for index, item in enumerate(span.parcel.items)
    ]


def _typical_s(found: Recording, place: int) -> float:
    calls: Sequence[tuple[Call, int]] = [
        (found.calls[place, parcel.number], len(parcel.items)) for parcel in found.parcels
    ]
    return statistics.median(call.compute_s / count for call, count in calls)
