"""What holds a run back, and by how many seconds: the run told again with one part of it made quick.

What a part costs is what would be saved without it, everything else unchanged; so two parts that hide each other cost
nothing by themselves, and what is named first is what is worth changing first.

- The slowest worker: its median call as quick as that of the next slowest.
- An edge: nothing to encode, store, fetch and decode on it; between two hosts, calls into it and their answers, which
  wait behind the data on the same line, take as long as their quickest tenth. One that is twice as fast: half of all
  that, and half of what they take longer.
- The data: they are read in no time.
- The driver: it handles calls in no time, and calls and answers take as long as its quickest tenth.
- A worker that is uneven: none of its calls takes more than its median one.
- A worker that stood still: so do all calls that it had then, each of which took over a second more than the median.
  What else costs something is told with these evened out: a stop shows wherever a call happens to be.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from distblock.learning.partition import balance
from distblock.metrics.hops import edge_name
from distblock.report.calibration import Calls, Recording
from distblock.schedule.replay import Call, replay

Kind = Literal["worker", "edge", "data", "driver", "uneven worker", "stopped worker"]

STOP_S = 1.0
"""Seconds beyond a worker's median call from which on one call is a stop."""

ROUGH = 0.1
"""Relative error of the replay from which on what-ifs are said to be rough."""

TWICE = "every link and store twice as fast"
"""A change."""

Change = Callable[[int, Call], Call]
"""Of a call at a place."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Something that holds the run back.

    Attributes:
        kind: what.
        where: which, in words.
        place: of the worker, or of the edge's receiver; 0 is the data's.
        seconds: that it costs, of the seconds replayed.
        number: of the microbatch that a worker stopped at.
        beyond_s: of a slow worker, seconds that it computes a training microbatch (where there are none, any) beyond
            what the next slowest does.
    """

    kind: Kind
    where: str
    place: int
    seconds: float
    number: int | None = None
    beyond_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """A change, and the samples per second that would come of it."""

    change: str
    samples_per_s: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one recording.

    Attributes:
        measured_s, replayed_s: of the stretch, by the clock and by the replay.
        samples_per_s: measured.
        bound_s: what the slowest worker's computing alone takes.
        slowest: that worker, in words.
        causes: those that cost anything, the dearest first.
        what_ifs: in an order of their own.
    """

    measured_s: float
    replayed_s: float
    samples_per_s: float
    bound_s: float
    slowest: str
    causes: tuple[Cause, ...]
    what_ifs: tuple[WhatIf, ...]

    @property
    def is_rough(self) -> bool:
        """The replay does not come near enough to what was measured."""
        return abs(self.replayed_s - self.measured_s) > ROUGH * self.measured_s


def judge(
    recording: Recording, *, codec: str, stage_s: Sequence[float] = (), num_blocks: Sequence[int] = ()
) -> Verdict:
    """Find what holds a run back, and what would change.

    Args:
        recording: a stretch of it.
        codec: of what crosses between nodes; where edges differ, fp32 if one of them has it.
        stage_s: seconds that each stage computes a microbatch; none: not known.
        num_blocks: of each stage; none: not known.
    """
    return _Judge(recording, codec, stage_s, num_blocks).verdict()


class _Judge:
    """A recording, and what it takes as it is."""

    def __init__(self, recording: Recording, codec: str, stage_s: Sequence[float], num_blocks: Sequence[int]) -> None:
        self._recording = recording
        self._codec = codec
        self._stage_s = stage_s
        self._num_blocks = num_blocks
        self._places = range(1, recording.num_workers + 1)
        self._calls: Calls = dict(recording.calls)
        self._as_it_is_s = self._base_s = self._wall_s(self._calls)
        self._compute_s = {place: self._sum_of(place) for place in self._places}
        self._slowest = max(self._places, key=self._compute_s.__getitem__)

    def verdict(self) -> Verdict:
        """All of it."""
        causes = [*self._stops(), *self._workers(), *self._uneven(), *self._edges(), self._data(), self._driver()]
        causes = sorted((cause for cause in causes if cause.seconds > 0), key=lambda cause: -cause.seconds)
        return Verdict(
            measured_s=self._recording.measured_s,
            replayed_s=self._as_it_is_s,
            samples_per_s=self._recording.samples_per_s,
            bound_s=self._compute_s[self._slowest],
            slowest=self._worker(self._slowest),
            causes=tuple(causes),
            what_ifs=tuple(self._what_ifs()),
        )

    def _worker(self, place: int) -> str:
        return f"worker {place - 1} (from stage {self._recording.stages[place - 1]}, on {self._recording.nodes[place]})"

    def _edge(self, place: int) -> str:
        sender, receiver = self._recording.nodes[place - 1 : place + 1]
        where = f"on {sender}" if sender == receiver else f"{sender} to {receiver}"
        return f"edge {edge_name(self._recording.stages[place - 1])} ({where})"

    def _sum_of(self, place: int) -> float:
        return sum(self._recording.calls[place, parcel.number].compute_s for parcel in self._recording.parcels)

    def _wall_s(self, calls: Calls, **changes: Any) -> float:
        return replay(self._recording.pipeline(calls, **changes)).wall_s

    def _changed_s(self, change: Change, **changes: Any) -> float:
        """What the run takes with a change of each call."""
        return self._wall_s({key: change(key[0], call) for key, call in self._calls.items()}, **changes)

    def _saved_s(self, change: Change, **changes: Any) -> float:
        return self._base_s - self._changed_s(change, **changes)

    def _workers(self) -> list[Cause]:
        if len(self._places) < 2:
            return []
        typical = {place: self._typical(place) for place in self._places}
        typical_s = {place: sum(call.compute_s for call in calls.values()) for place, calls in typical.items()}
        *_, following, slowest = sorted(self._places, key=typical_s.__getitem__)
        share = typical_s[following] / typical_s[slowest]
        parcels = self._recording.parcels
        some = next((parcel for parcel in parcels if parcel.purpose == "train"), parcels[0])
        slow_s, next_s = (typical[place][some.number].compute_s / len(some.items) for place in (slowest, following))
        return [
            Cause(
                kind="worker",
                where=self._worker(slowest),
                place=slowest,
                seconds=self._saved_s(_computing(slowest, share)),
                beyond_s=slow_s - next_s,
            )
        ]

    def _stops(self) -> list[Cause]:
        """Each with all the calls that it shows in; afterwards these are as others are."""
        found = []
        for place in self._places:
            typical = self._typical(place)
            for run in self._runs_of_long_calls(place, typical):
                self._calls |= {(place, number): typical[number] for number in run}
                before_s, self._base_s = self._base_s, self._wall_s(self._calls)
                found.append(
                    Cause(
                        kind="stopped worker",
                        where=self._worker(place),
                        place=place,
                        seconds=before_s - self._base_s,
                        number=run[0],
                    )
                )
        return found

    def _runs_of_long_calls(self, place: int, typical: Mapping[int, Call]) -> list[list[int]]:
        """Numbers of parcels that took too long one after the other, as those do that a worker has at once."""
        runs: list[list[int]] = []
        was_long = False
        for parcel in self._recording.parcels:
            excess_s = _sum(self._calls[place, parcel.number]) - _sum(typical[parcel.number])
            is_long = excess_s > STOP_S
            if is_long and was_long:
                runs[-1].append(parcel.number)
            elif is_long:
                runs.append([parcel.number])
            was_long = is_long
        return runs

    def _uneven(self) -> list[Cause]:
        """What is above a worker's median."""
        found = []
        for place in self._places:
            evened = {
                (place, number): replace(own, compute_s=min(own.compute_s, typical.compute_s))
                for number, typical in self._typical(place).items()
                for own in [self._calls[place, number]]
            }
            saved_s = self._base_s - self._wall_s(self._calls | evened)
            found.append(Cause(kind="uneven worker", where=self._worker(place), place=place, seconds=saved_s))
        return found

    def _typical(self, place: int) -> dict[int, Call]:
        """The median call of a place for each parcel: of a microbatch what goes by microbatches, computing by those of
        one purpose."""
        parcels = self._recording.parcels
        calls = [(parcel, self._calls[place, parcel.number]) for parcel in parcels]
        each_s: dict[str, list[float]] = {}
        for parcel, call in calls:
            each_s.setdefault(parcel.purpose, []).append(call.compute_s / len(parcel.items))
        moved_s = {
            name: statistics.median(getattr(call, name) / len(parcel.items) for parcel, call in calls)
            for name in _MOVED
        }
        called_s = {name: statistics.median(getattr(call, name) for _, call in calls) for name in _CALLED}
        return {
            parcel.number: Call(
                compute_s=statistics.median(each_s[parcel.purpose]) * len(parcel.items),
                **{name: seconds * len(parcel.items) for name, seconds in moved_s.items()},
                **called_s,
            )
            for parcel in parcels
        }

    def _edges(self) -> list[Cause]:
        return [
            Cause(
                kind="edge",
                where=self._edge(place),
                place=place,
                seconds=self._base_s - self._edges_s([place], 0.0),
            )
            for place in self._places
        ]

    def _edges_s(self, places: Collection[int], factor: float) -> float:
        """What the run takes where edges into some places take so much of what they took: both their ends, links, and
        calls that wait behind what crosses."""
        hopping = _hopping(places, factor)
        called = self._called_in([place for place in places if self._recording.crosses[place - 1]], factor)
        links = {
            edge: replace(link, bytes_per_s=link.bytes_per_s / factor if factor else math.inf)
            if edge + 1 in places
            else link
            for edge, link in self._recording.links.items()
        }
        return self._changed_s(lambda at, call: called(at, hopping(at, call)), links=links)

    def _data(self) -> Cause:
        saved_s = self._saved_s(_computing(0, 0.0))
        return Cause(kind="data", where="reading the data", place=0, seconds=saved_s)

    def _driver(self) -> Cause:
        seconds = self._saved_s(self._called_in((0, *self._places), 0.0), driver_microbatch_s=0.0)
        return Cause(kind="driver", where="the driver", place=0, seconds=seconds)

    def _called_in(self, places: Collection[int], factor: float) -> Change:
        """Calls of some places and their answers take so much of what they took beyond their quickest tenth."""
        quick = {
            (place, name): _tenth([getattr(call, name) for (at, _), call in self._calls.items() if at == place])
            for place in places
            for name in _CALLED
        }

        def change(place: int, call: Call) -> Call:
            if place not in places:
                return call
            took_s = {name: (getattr(call, name), quick[place, name]) for name in _CALLED}
            return replace(
                call, **{name: min(own, least + factor * (own - least)) for name, (own, least) in took_s.items()}
            )

        return change

    def _what_ifs(self) -> list[WhatIf]:
        inner = self._places[1:]
        found = []
        if inner:
            found.append(self._told(TWICE, self._edges_s(inner, 0.5)))
        crossed = [place for place in inner if self._recording.crosses[place - 1]]
        if crossed and self._codec == "fp32":
            # Half the bytes; the cast itself takes time, too, which is not known. Within a node it costs what it saves.
            found.append(self._told("activations between nodes sent as bf16", self._edges_s(crossed, 0.5)))
        if self._can_be_split:
            change = "one worker more, with half of the slowest one's computing"
            found.append(self._if_calls(change, *self._split(), **self._moved_links()))
        if len(self._stage_s) > len(self._places):
            found.append(self._if_calls("one worker more, the stages dealt out anew", *self._dealt_anew()))
        return found

    @property
    def _can_be_split(self) -> bool:
        """The slowest worker has two blocks or more, as far as is known."""
        starts = [*self._recording.stages, len(self._num_blocks)]
        own = self._num_blocks[starts[self._slowest - 1] : starts[self._slowest]]
        return not self._num_blocks or sum(own) > 1

    def _if_calls(self, change: str, calls: Calls, num_workers: int, **changes: Any) -> WhatIf:
        limits = (*self._recording.limits, self._recording.limits[-1])[:num_workers]
        return self._told(change, self._wall_s(calls, **{"limits": limits, **changes}))

    def _moved_links(self) -> dict[str, Any]:
        """With one more worker behind the slowest; the new edge is within a node."""
        found, slowest = self._recording, self._slowest

        def moved(edge: int) -> int:
            return edge + (edge >= slowest)

        sizes = {(moved(place - 1) + 1, number): size for (place, number), size in found.sizes.items()}
        limits = found.limits
        return {
            "limits": (*limits[:slowest], limits[slowest - 1], *limits[slowest:]),
            "links": {moved(edge): link for edge, link in found.links.items()},
            "size": lambda edge, parcel: sizes.get((edge + 1, parcel.number), 0),
        }

    def _told(self, change: str, wall_s: float) -> WhatIf:
        stopped_s = self._as_it_is_s - self._base_s
        times = self._as_it_is_s / (wall_s + stopped_s)
        return WhatIf(change=change, samples_per_s=self._recording.samples_per_s * times)

    def _split(self) -> tuple[Calls, int]:
        """One more worker behind the slowest, each with half of its computing; the new edge is like that before it."""
        calls: Calls = {}
        place = self._slowest
        for (at, number), call in self._calls.items():
            calls[at + (at > place), number] = call
            if at == place:
                half = replace(call, compute_s=call.compute_s / 2)
                inner = self._calls[max(1, place - 1), number]
                calls[place, number] = replace(half, store_s=max(call.store_s, inner.store_s))
                calls[place + 1, number] = half
        return calls, len(self._places) + 1

    def _dealt_anew(self) -> tuple[Calls, int]:
        """All stages over one worker more; a new edge is like the last one there is, within a node."""
        num_workers = len(self._places) + 1
        shares = _shares(self._stage_s, num_workers)
        calls: Calls = {}
        for parcel in self._recording.parcels:
            own = [self._calls[place, parcel.number] for place in self._places]
            whole_s = sum(call.compute_s for call in own)
            calls[0, parcel.number] = self._calls[0, parcel.number]
            for place, share in enumerate(shares, start=1):
                like = own[min(place, len(own)) - 1]
                # The last one there was stored nothing.
                store_s = like.store_s if place < len(own) or len(own) == 1 else own[-2].store_s
                store_s = 0.0 if place == num_workers else store_s
                calls[place, parcel.number] = replace(like, compute_s=share * whole_s, store_s=store_s)
        return calls, num_workers


_CALLED, _MOVED = ("send_s", "reply_s"), ("fetch_s", "store_s")
"""Of a call, whatever it carries; and of what it carries."""


def _sum(call: Call) -> float:
    return call.compute_s + sum(getattr(call, name) for name in (*_CALLED, *_MOVED))


def _shares(stage_s: Sequence[float], num_workers: int) -> list[float]:
    """Of all computing, by worker, where stages are dealt out as evenly as they can be."""
    cuts = balance([max(1, round(seconds * 1e6)) for seconds in stage_s], num_workers)
    bounds = [0, *cuts, len(stage_s)]
    return [sum(stage_s[begin:end]) / sum(stage_s) for begin, end in pairwise(bounds)]


def _computing(place: int, factor: float) -> Change:
    return lambda at, call: replace(call, compute_s=call.compute_s * factor) if at == place else call


def _hopping(places: Collection[int], factor: float) -> Change:
    """What the edges into some places take, at both ends."""

    def change(at: int, call: Call) -> Call:
        fetch_s = call.fetch_s * factor if at in places else call.fetch_s
        store_s = call.store_s * factor if at + 1 in places else call.store_s
        return replace(call, fetch_s=fetch_s, store_s=store_s)

    return change


def _tenth(values: Sequence[float]) -> float:
    """What the quickest tenth does not exceed."""
    return sorted(values)[len(values) // 10]
