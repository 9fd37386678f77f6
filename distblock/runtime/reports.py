"""What a worker reports of the microbatches of a call: seconds, bytes, and when each was where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distblock.codecs.payload import Payload
from distblock.learning.host import Host, Work
from distblock.messages import Arrival, Departure, Item, Parcel, Passage, WorkerReport
from distblock.runtime.intake import Arrived, Fetched
from distblock.runtime.reuse import Reused


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """What computing gave, and when it ran (on the worker's clock).

    Attributes:
        payload: what leaves, where the edge's codec remembers and takes its turn here.
        decode_s, encode_s: seconds of such codecs.
    """

    work: Work
    payload: Payload | None
    decode_s: float
    encode_s: float
    departures: tuple[Departure, ...]
    reused: Reused
    started_s: float
    finished_s: float
    idle_since_s: float

    @property
    def idle_s(self) -> float:
        """Seconds for which the worker had nothing to compute before it."""
        return max(0.0, self.started_s - self.idle_since_s - self.reused.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A microbatch that has been computed, its output as it leaves (None: it does not), and when it was encoded."""

    fetched: Fetched
    computed: Computed
    payload: Payload | None
    encode_s: float
    encoded_s: float


class Reporter:
    """Of one worker.

    Args:
        host: its stages.
        index: the worker's place among all processes with stages.
        node: where it is.
        records: whether hops are measured; else only steps are told.
        epoch_s: when the worker's clock was at 0.
    """

    def __init__(self, host: Host, index: int, *, node: str, records: bool, epoch_s: float) -> None:
        self._host = host
        self._index = index
        self._node = node
        self._records = records
        self._epoch_s = epoch_s

    def reports(
        self, parcel: Parcel, arrived: Arrived, done: Sequence[Done], *, put_s: float, stored_s: float
    ) -> tuple[WorkerReport, ...]:
        """Of each microbatch; what storing the parcel took is shared out evenly."""
        if not self._records:
            return tuple(self._report(item, each.computed) for item, each in zip(parcel.items, done, strict=True))
        first = done[0].computed
        return tuple(
            self._recorded(
                item,
                each,
                arrivals=arrived.arrivals(
                    each.fetched,
                    idle_since_s=first.idle_since_s,
                    idle_s=first.idle_s,
                    in_turn_s=each.computed.decode_s,
                ),
                put_s=put_s / len(done),
                passage=self._passage(arrived, each, stored_s=stored_s),
            )
            for item, each in zip(parcel.items, done, strict=True)
        )

    def _recorded(
        self, item: Item, done: Done, *, arrivals: tuple[Arrival, ...], put_s: float, passage: Passage
    ) -> WorkerReport:
        computed = done.computed
        departures = computed.departures
        if done.payload is not None:
            departure = done.payload.departure(encode_s=done.encode_s, put_s=put_s, in_turn_s=computed.encode_s)
            departures += (departure,)
        arrivals += computed.work.arrivals
        return self._report(item, computed, arrivals=arrivals, departures=departures, passage=passage)

    def _report(
        self,
        item: Item,
        computed: Computed,
        *,
        arrivals: tuple[Arrival, ...] = (),
        departures: tuple[Departure, ...] = (),
        passage: Passage | None = None,
    ) -> WorkerReport:
        return WorkerReport(
            worker=self._index,
            item=item,
            stages=computed.work.reports,
            arrivals=arrivals,
            departures=departures,
            started_s=self._epoch_s + computed.started_s,
            finished_s=self._epoch_s + computed.finished_s,
            idle_s=computed.idle_s,
            reused=computed.reused.numbers,
            reuse_s=computed.reused.seconds,
            peak_memory_bytes=self._host.peak_memory_bytes(),
            node=self._node,
            passage=passage,
        )

    def _passage(self, arrived: Arrived, done: Done, *, stored_s: float) -> Passage:
        epoch_s = self._epoch_s
        return Passage(
            asked_s=epoch_s + arrived.asked_s,
            fetched_s=epoch_s + arrived.fetched_s,
            decoded_s=epoch_s + arrived.decoded_s,
            started_s=epoch_s + done.computed.started_s,
            finished_s=epoch_s + done.computed.finished_s,
            encoded_s=epoch_s + done.encoded_s,
            stored_s=epoch_s + stored_s,
            wire_bytes=0 if done.payload is None else done.payload.wire_bytes,
        )
