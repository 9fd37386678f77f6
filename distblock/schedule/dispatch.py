"""Who may begin what, now: the pipeline as a state machine without clock, threads or Ray.

Places stand in a row: place 0 prepares data, place p > 0 is worker p - 1. Edge e leads from place e to place e + 1.
Every place works on the parcels of the stream in order. It may begin one as soon as the place before it has finished it
and the edge behind it has a credit; there is no other rule, and nothing flows back. With three workers this draws

    time       0    1    2    3    4    5
    data       0    1    2    3
    worker 0        0    1    2    3
    worker 1             0    1    2    3
    worker 2                  0    1    2

In the asynchronous regime no place waits for a credit to train: where more training parcels than an edge's limit
stand before a place, the oldest is dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from distblock.messages import Parcel
from distblock.schedule.credits import Credits

AHEAD = 2
"""With drops: parcels that a place has begun and not finished, so that it fetches one while it computes another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatch:
    """Leave to begin.

    Attributes:
        place: who begins.
        parcel: the microbatches.
        backpressure_s: seconds the place stood idle with its input ready, for want of a credit.
    """

    place: int
    parcel: Parcel
    backpressure_s: float


@dataclass(slots=True)
class _Place:
    """One place's state: what it has been given, what it may take next, since when it waits for a credit."""

    arrived: dict[int, Parcel]
    begun: int
    unfinished: set[int] = field(default_factory=set)
    waiting_since_s: float | None = None


class Dispatcher:
    """The state of a pipeline.

    Args:
        parcels: the stream; its microbatches are numbered without gaps. Taken from only when place 0 may begin the
            next; None stands for nothing now, and the stream is asked again later.
        edges: what is in flight on each edge in order, as many as there are workers; pipelines may share an edge.
        size: bytes of a parcel on an edge: ``size(edge, parcel)``.
        drops: nobody waits; old training parcels are dropped instead.
        start: number of the stream's first microbatch.
    """

    def __init__(
        self,
        parcels: Iterator[Parcel | None],
        *,
        edges: Sequence[Credits],
        size: Callable[[int, Parcel], int],
        drops: bool = False,
        start: int = 0,
    ) -> None:
        self._parcels = parcels
        self._is_exhausted = False
        self._size = size
        self._drops = drops
        self.dropped: list[tuple[int, Parcel]] = []
        self._places = [_Place(arrived={}, begun=start) for _ in range(len(edges) + 1)]
        self.edges = edges

    @property
    def is_finished(self) -> bool:
        """Nothing is begun, waiting or left in the stream."""
        return self._is_exhausted and all(not place.arrived and not place.unfinished for place in self._places)

    def begin(self, now_s: float) -> list[Dispatch]:
        """Everything that may begin now, the last place first, so that room made downstream is used upstream."""
        dispatches = []
        for index in reversed(range(len(self._places))):
            while (dispatch := self._begin_at(index, now_s)) is not None:
                dispatches.append(dispatch)
        return dispatches

    def finish(self, place: int, parcel: Parcel) -> None:
        """A place is done with a parcel: it moves on, and the credit of the edge before comes back."""
        self._places[place].unfinished.remove(parcel.number)
        if place > 0:
            self.edges[place - 1].give_back(self._size(place - 1, parcel), len(parcel.items))
        if place + 1 < len(self._places):
            self._places[place + 1].arrived[parcel.number] = parcel
            if self._drops and parcel.purpose == "train" and place > 0:
                self._drop(place)

    def begun(self, place: int) -> int:
        """Number of the first microbatch that a place has not begun."""
        return self._places[place].begun

    def has_passed(self, place: int, number: int) -> bool:
        """Whether every microbatch before a number has been begun at a place, or dropped before it."""
        if not self._is_exhausted and self._places[0].begun < number:
            return False
        before = (each for other in self._places[:place] for each in other.unfinished)
        waiting = (each for other in self._places[: place + 1] for each in other.arrived)
        return all(each >= number for each in (*before, *waiting))

    def blocked(self) -> Iterator[tuple[int, float]]:
        """Places that have nothing under way and something to begin, but no credit for what would come of it; and since
        when."""
        for index, place in enumerate(self._places):
            if place.waiting_since_s is not None:
                yield index, place.waiting_since_s

    def is_drained(self, place: int) -> bool:
        """Whether the stream is at its end, and a place has begun all of it."""
        return self._is_exhausted and self.has_passed(place, sys.maxsize)

    def _begin_at(self, index: int, now_s: float) -> Dispatch | None:
        place = self._places[index]
        parcel = self._next(index)
        if parcel is None:
            return None
        if index < len(self.edges):
            waits = not self._drops or index == 0 or parcel.purpose != "train"
            if waits and not self.edges[index].has_room(self._size(index, parcel)):
                if not place.unfinished and place.waiting_since_s is None:
                    place.waiting_since_s = now_s
                return None
            self.edges[index].take(self._size(index, parcel), len(parcel.items))
        waited_s = 0.0 if place.waiting_since_s is None else now_s - place.waiting_since_s
        place.waiting_since_s = None
        del place.arrived[parcel.number]
        place.begun = parcel.stop
        place.unfinished.add(parcel.number)
        return Dispatch(place=index, parcel=parcel, backpressure_s=waited_s)

    def _drop(self, edge: int) -> None:
        """Let go of the oldest training parcels before the next place, down to the edge's limit."""
        waiting = self._places[edge + 1].arrived
        training = sorted(number for number, parcel in waiting.items() if parcel.purpose == "train")
        for number in training[: -self.edges[edge].limit.count]:
            parcel = waiting.pop(number)
            self.edges[edge].give_back(self._size(edge, parcel), len(parcel.items))
            self.dropped.append((edge, parcel))

    def _next(self, index: int) -> Parcel | None:
        place = self._places[index]
        if index == 0 and not place.arrived and not self._is_exhausted:
            try:
                parcel = next(self._parcels)
            except StopIteration:
                self._is_exhausted = True
                return None
            if parcel is not None:
                place.arrived[parcel.number] = parcel
        if not self._drops:
            return place.arrived.get(place.begun)
        # Numbers have gaps; and a place that has enough to do takes no more, so that what waits can be dropped.
        if not place.arrived or (index > 0 and len(place.unfinished) >= AHEAD):
            return None
        return place.arrived[min(place.arrived)]
