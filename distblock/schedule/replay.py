"""What a pipeline would take: measured times, passed through the real rules of who may begin what.

A profile says where seconds went, not which of them anybody waited for. Here a run is told again from what each call
took, by the `Dispatcher` that the driver uses and a clock that is moved from event to event; told with other times, it
answers what would be if a stage, an edge, the data or the driver were quicker.

What is modelled is what the runtime does: the driver handles one call's end after the other; a call's inputs are
fetched while its worker computes what came before, and its outputs are stored while the worker goes on; a worker
computes in stream order, and a data worker does one call at a time.

Source: Lin et al. 2025, arXiv:2505.05713, who replay traces of training with other durations; the simulation is
discrete-event, as in Law 2015, "Simulation Modeling and Analysis".
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from distblock.messages import Parcel
from distblock.schedule.credits import Credits, Limit
from distblock.schedule.dispatch import Dispatch, Dispatcher


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What one parcel takes at one place, in seconds.

    Attributes:
        send_s: from the driver's call to the worker's beginning to fetch.
        fetch_s: until all is on the device; a data worker fetches nothing.
        compute_s: of all its microbatches.
        store_s: encoding and storing what comes out.
        reply_s: until the driver could know.
    """

    send_s: float
    fetch_s: float
    compute_s: float
    store_s: float
    reply_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A parcel at a place, in seconds from the beginning; place 0 is the data's, place p > 0 is worker p - 1."""

    place: int
    parcel: Parcel
    asked_s: float
    fetched_s: float
    started_s: float
    finished_s: float
    stored_s: float


@dataclass(frozen=True, kw_only=True)
class Link:
    """What lies between two places: one transfer after the other, each a delay later than it was sent.

    Attributes:
        name: edges whose links have the same name share one.
        bytes_per_s: its rate.
        delay_s: each way.
    """

    name: str
    bytes_per_s: float
    delay_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Absence:
    """A worker that is away: what it is computing then is begun again when it is back.

    Attributes:
        place: whose.
        begin_s, end_s: from when until when.
    """

    place: int
    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A run to be told.

    Attributes:
        parcels: in order.
        call: what a parcel takes at a place: ``call(place, parcel)``.
        limits: of what is in flight on each edge, as many as there are workers.
        size: bytes of a parcel on an edge: ``size(edge, parcel)``.
        num_feeders: data workers.
        driver_s: seconds that the driver is busy with each call,
        driver_microbatch_s: and with each of its microbatches.
        links: what a fetch passes beside the seconds of its call, by edge; the edge into place p > 0 is p - 1.
        absences: of workers, by time.
    """

    parcels: Sequence[Parcel]
    call: Callable[[int, Parcel], Call]
    limits: Sequence[Limit]
    size: Callable[[int, Parcel], int] = lambda edge, parcel: 0  # noqa: ARG005
    num_feeders: int = 1
    driver_s: float = 0.0
    driver_microbatch_s: float = 0.0
    links: Mapping[int, Link] = field(default_factory=dict)
    absences: Sequence[Absence] = ()


@dataclass(frozen=True, kw_only=True)
class Told:
    """How it went.

    Attributes:
        spans: in the order in which calls were made.
        wall_s: from the first call to the driver's being done with the last one.
    """

    spans: tuple[Span, ...]
    wall_s: float


def replay(pipeline: Pipeline) -> Told:
    """Tell a run."""
    return _Clock(pipeline).run()


class _Clock:
    """The events that lie ahead, and until when everyone is busy."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._dispatcher = Dispatcher(
            iter(pipeline.parcels),
            edges=[Credits(limit) for limit in pipeline.limits],
            size=pipeline.size,
            start=pipeline.parcels[0].number if pipeline.parcels else 0,
        )
        self._ends: list[tuple[float, int, int, Parcel]] = []
        self._count = itertools.count()
        self._feeders_s = [0.0] * pipeline.num_feeders
        self._num_fed = 0
        self._workers_s = [0.0] * len(pipeline.limits)
        self._links_s: dict[str, float] = {}
        self._absences: dict[int, list[Absence]] = {}
        for absence in sorted(pipeline.absences, key=lambda each: each.begin_s):
            self._absences.setdefault(absence.place, []).append(absence)
        self._spans: list[Span] = []

    def run(self) -> Told:
        """Until nothing is under way."""
        now_s = 0.0
        self._begin(now_s)
        while self._ends:
            end_s, _, place, parcel = heapq.heappop(self._ends)
            now_s = max(now_s, end_s) + self._driver_s(parcel)
            self._dispatcher.finish(place, parcel)
            self._begin(now_s)
        return Told(spans=tuple(self._spans), wall_s=now_s)

    def _driver_s(self, parcel: Parcel) -> float:
        return self._pipeline.driver_s + self._pipeline.driver_microbatch_s * len(parcel.items)

    def _passed_s(self, place: int, parcel: Parcel, asked_s: float) -> float:
        """When all of a parcel has passed its link."""
        link = self._pipeline.links.get(place - 1)
        if link is None:
            return asked_s
        size = self._pipeline.size(place - 1, parcel)
        sent_s = max(asked_s, self._links_s.get(link.name, 0.0)) + size / link.bytes_per_s
        self._links_s[link.name] = sent_s
        return sent_s + link.delay_s

    def _present(self, place: int, could_s: float, compute_s: float) -> tuple[float, float]:
        """From when to when it computes."""
        started_s = could_s
        for absence in self._absences.get(place, ()):
            if started_s < absence.end_s and started_s + compute_s > absence.begin_s:
                started_s = absence.end_s
        return started_s, started_s + compute_s

    def _begin(self, now_s: float) -> None:
        for dispatch in self._dispatcher.begin(now_s):
            self._submit(dispatch, now_s)

    def _submit(self, dispatch: Dispatch, now_s: float) -> None:
        place, parcel = dispatch.place, dispatch.parcel
        call = self._pipeline.call(place, parcel)
        if place == 0:
            busy_s, index = self._feeders_s, self._num_fed % len(self._feeders_s)
            self._num_fed += 1
        else:
            busy_s, index = self._workers_s, place - 1
        asked_s = now_s + call.send_s
        fetched_s = self._passed_s(place, parcel, asked_s) + call.fetch_s
        started_s, finished_s = self._present(place, max(fetched_s, busy_s[index]), call.compute_s)
        stored_s = finished_s + call.store_s
        busy_s[index] = finished_s if place else stored_s
        self._spans.append(
            Span(
                place=place,
                parcel=parcel,
                asked_s=asked_s,
                fetched_s=fetched_s,
                started_s=started_s,
                finished_s=finished_s,
                stored_s=stored_s,
            )
        )
        heapq.heappush(self._ends, (stored_s + call.reply_s, next(self._count), place, parcel))
