"""From a run's timeline to what each call took: the input of `distblock.schedule.replay`.

A worker's computing thread is taken to be busy from when it could have begun, with its input there and the parcel
before done, until it has finished: what Python and Ray take in between belongs to it. A data worker's call is taken to
begin when the call before it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import pyarrow as pa

from distblock.config import Config
from distblock.errors import InputError
from distblock.messages import Item, Parcel
from distblock.schedule.credits import Limit, edge_limits
from distblock.schedule.replay import Call, Link, Pipeline

_Row = Mapping[str, Any]
Calls = dict[tuple[int, int], Call]
"""By place and number of the parcel; place 0 is the data's."""

ONE_STREAM = ("parallel", "end-to-end")
"""Regimes in which all microbatches pass all workers, in one stream, and none is dropped."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A stretch of a run, as it was measured.

    Attributes:
        parcels: that all places worked on, in order, without a gap.
        calls: what each took.
        stages: the first stage of each worker.
        nodes: of each place, the data's first.
        measured_s: from the first call to the driver's being done with the last one.
        limits, num_feeders, links: as for `Pipeline`.
        sizes: bytes of what enters a place, by place and number of the parcel, where it passes a link.
        driver_s: seconds that the driver is busy with each microbatch of a call: most of its work goes by them, and a
            run's first calls have fewer.
        num_samples: of all parcels together.
    """

    parcels: tuple[Parcel, ...]
    calls: Calls
    stages: tuple[int, ...]
    nodes: tuple[str, ...]
    measured_s: float
    limits: tuple[Limit, ...]
    num_feeders: int
    driver_s: float
    num_samples: int
    links: Mapping[int, Link] = field(default_factory=dict)
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @property
    def num_workers(self) -> int:
        """Workers, replicas counted as one."""
        return len(self.stages)

    @property
    def crosses(self) -> tuple[bool, ...]:
        """Of the edge into each worker, that from the data first, whether it lies between two nodes."""
        return tuple(sender != receiver for sender, receiver in pairwise(self.nodes))

    @property
    def samples_per_s(self) -> float:
        """Measured, evaluations included."""
        return self.num_samples / self.measured_s

    def pipeline(self, calls: Calls | None = None, **changes: Any) -> Pipeline:
        """To be told, with other calls if there are any."""
        given = self.calls if calls is None else calls
        values: dict[str, Any] = {
            "parcels": self.parcels,
            "call": lambda place, parcel: given[place, parcel.number],
            "limits": self.limits,
            "num_feeders": self.num_feeders,
            "driver_microbatch_s": self.driver_s,
            "links": self.links,
            "size": lambda edge, parcel: self.sizes.get((edge + 1, parcel.number), 0),
        }
        return Pipeline(**{**values, **changes})


def recording(
    timeline: pa.Table, config: Config, *, driver_s: float, rates: Mapping[int, float] | None = None
) -> Recording:
    """The last stretch of a run of which all is known.

    Args:
        timeline: ``timeline.parquet``.
        config: the run's settings.
        driver_s: seconds that the driver was busy with each microbatch of a call.
        rates: of the lines between two nodes, bytes a second by the stage that their edge enters.

    Raises:
        InputError: the regime has more than one stream, or too little was recorded.
    """
    if config.regime.name not in ONE_STREAM:
        raise InputError(
            f"why: expected a run of the {' or the '.join(ONE_STREAM)} regime, whose times can be replayed, got one of"
            f" the {config.regime.name} regime; its summary and report show where its time went"
        )
    rows = timeline.to_pylist()
    by_place = _by_place(rows, replicas=config.workers_per_stage)
    numbers = _known_everywhere(by_place)
    if len(numbers) < 2:
        raise InputError(
            "why: expected a timeline with two calls of every worker or more, got fewer; train longer, by workers"
            " (executor ray), with metrics.record"
        )
    calls = {
        (place, number): call
        for place, parcels in by_place.items()
        for number, call in (_feeding(parcels) if place == 0 else _working(parcels)).items()
        if number in numbers
    }
    used = [row for parcels in by_place.values() for number in numbers for row in parcels[number]]
    firsts = [next(iter(by_place[place].values()))[0] for place in sorted(by_place)]
    stages, nodes = tuple(row["stage"] for row in firsts[1:]), tuple(row["node"] for row in firsts)
    rates_by_place = [(rates or {}).get(stage) for stage in stages]
    # Each row of replicas has lines of its own, of which one rate is known.
    links = {} if config.workers_per_stage > 1 else _links(nodes, rates_by_place)
    links, sizes, calls = _on_links(links, numbers, by_place, calls)
    return Recording(
        parcels=tuple(_parcel(by_place[0][number]) for number in numbers),
        calls=calls,
        stages=stages,
        nodes=nodes,
        measured_s=max(row["handled_s"] for row in used) - min(row["sent_s"] for row in used),
        limits=tuple(edge_limits(config, rates_by_place)),
        num_feeders=config.data.workers,
        driver_s=driver_s,
        num_samples=sum(row["num_samples"] for number in numbers for row in by_place[0][number]),
        links=links,
        sizes=sizes,
    )


def _links(nodes: Sequence[str], rates: Sequence[float | None]) -> dict[int, Link]:
    """What lies between two nodes, by edge; edges between the same two share it, in each direction."""
    return {
        edge: Link(name=f"{sender} to {receiver}", bytes_per_s=rate)
        for edge, ((sender, receiver), rate) in enumerate(zip(pairwise(nodes), rates, strict=True))
        if rate is not None and sender != receiver
    }


def _on_links(
    links: Mapping[int, Link],
    numbers: Sequence[int],
    by_place: Mapping[int, Mapping[int, Sequence[_Row]]],
    calls: Calls,
) -> tuple[dict[int, Link], dict[tuple[int, int], int], Calls]:
    """Links with the rate that they have shown, what passes them, and what is left of calls beside them."""
    shown, sizes, left = {}, {}, dict(calls)
    for name in dict.fromkeys(link.name for link in links.values()):
        edges = [edge for edge, link in links.items() if link.name == name]
        passed = (_fetch(edge + 1, number, by_place) for edge in edges for number in numbers)
        fetches = sorted(passed, key=lambda fetch: fetch.asked_s)
        rate = max(_observed_rate(fetches), *(links[edge].bytes_per_s for edge in edges))
        shown |= {edge: Link(name=name, bytes_per_s=rate) for edge in edges}
        sizes |= {(fetch.place, fetch.number): fetch.num_bytes for fetch in fetches}
        left |= _beside(rate, fetches, calls)
    return shown, sizes, left


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fetch:
    """What passed a link: into which place, from when to when, how many bytes."""

    place: int
    number: int
    asked_s: float
    there_s: float
    num_bytes: int


def _fetch(place: int, number: int, by_place: Mapping[int, Mapping[int, Sequence[_Row]]]) -> _Fetch:
    rows = by_place[place][number]
    return _Fetch(
        place=place,
        number=number,
        asked_s=rows[0]["asked_s"],
        there_s=max(row["decoded_s"] for row in rows),
        num_bytes=sum(row["wire_bytes"] for row in by_place[place - 1][number]),
    )


def _observed_rate(fetches: Sequence[_Fetch]) -> float:
    """Bytes a second while something was under way: the link carries no less, whatever was measured of it before.
    Fetches come in the order in which they were asked for."""
    busy_s, until_s = 0.0, float("-inf")
    for fetch in fetches:
        busy_s += max(0.0, fetch.there_s - max(fetch.asked_s, until_s))
        until_s = max(until_s, fetch.there_s)
    return sum(fetch.num_bytes for fetch in fetches) / busy_s if busy_s else 0.0


def _beside(rate: float, fetches: Sequence[_Fetch], calls: Calls) -> Calls:
    """Calls, where of their fetching only what a link does not explain is left: it carries one parcel after the other,
    and those behind it wait."""
    free_s, found = float("-inf"), {}
    for fetch in fetches:
        free_s = max(free_s, fetch.asked_s) + fetch.num_bytes / rate
        key = fetch.place, fetch.number
        found[key] = replace(calls[key], fetch_s=max(0.0, fetch.there_s - free_s))
    return found


def place_of(worker: int, replicas: int) -> int:
    """Where a row of the timeline belongs, by its worker; place 0 is the data's."""
    return 0 if worker < 0 else 1 + worker // replicas


def _by_place(rows: Sequence[_Row], *, replicas: int) -> dict[int, dict[int, list[_Row]]]:
    """Rows by place and by the number of the parcel's first microbatch; of several replicas, the one that ends last."""
    found: dict[int, dict[int, list[_Row]]] = {}
    ordered = sorted(rows, key=itemgetter("worker", "sent_s", "stored_s", "number"))
    # Microbatches of one parcel are sent together, and stored together.
    for (worker, *_), run in groupby(ordered, key=itemgetter("worker", "sent_s", "stored_s")):
        parcel = list(run)
        parcels = found.setdefault(place_of(worker, replicas), {})
        known = parcels.get(parcel[0]["number"])
        if known is None or known[0]["worker"] == worker or known[-1]["told_s"] < parcel[-1]["told_s"]:
            parcels[parcel[0]["number"]] = parcel
    return found


def _known_everywhere(by_place: Mapping[int, Mapping[int, Sequence[_Row]]]) -> list[int]:
    """Numbers of the last parcels without a gap that all places have."""
    if 0 not in by_place:
        return []
    common = sorted(set.intersection(*(set(parcels) for parcels in by_place.values())))
    numbers: list[int] = []
    for number in reversed(common):
        if numbers and number + len(by_place[0][number]) != numbers[-1]:
            break
        numbers.append(number)
    return numbers[::-1]


def _parcel(rows: Sequence[_Row]) -> Parcel:
    return Parcel(
        tuple(
            Item(
                number=row["number"],
                purpose=row["purpose"],
                part=row["part"],
                epoch=row["epoch"],
                index=row["index"],
                first_sample=0,
                num_samples=row["num_samples"],
                batch_samples=row["num_samples"],
                closes_batch=True,
                closes_pass=False,
            )
            for row in rows
        )
    )


def _feeding(parcels: Mapping[int, Sequence[_Row]]) -> dict[int, Call]:
    """Of data workers, by number."""
    free_s: dict[int, float] = {}
    calls = {}
    for number, rows in sorted(parcels.items(), key=lambda each: each[1][0]["asked_s"]):
        first, last = rows[0], rows[-1]
        could_s = max(first["sent_s"], free_s.get(first["worker"], first["sent_s"]))
        calls[number] = Call(
            send_s=max(0.0, first["asked_s"] - could_s),
            fetch_s=0.0,
            compute_s=last["finished_s"] - first["started_s"],
            store_s=max(0.0, last["stored_s"] - last["finished_s"]),
            reply_s=max(0.0, last["told_s"] - last["stored_s"]),
        )
        free_s[first["worker"]] = last["stored_s"]
    return calls


def _working(parcels: Mapping[int, Sequence[_Row]]) -> dict[int, Call]:
    """Of a worker, by number."""
    free_s = float("-inf")
    calls = {}
    for number, rows in sorted(parcels.items()):
        first, last = rows[0], rows[-1]
        there_s = max(row["decoded_s"] for row in rows)
        calls[number] = Call(
            send_s=max(0.0, first["asked_s"] - first["sent_s"]),
            fetch_s=max(0.0, there_s - first["asked_s"]),
            compute_s=last["finished_s"] - max(there_s, free_s),
            store_s=max(0.0, last["stored_s"] - last["finished_s"]),
            reply_s=max(0.0, last["told_s"] - last["stored_s"]),
        )
        free_s = last["finished_s"]
    return calls
