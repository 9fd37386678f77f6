"""Workers that compute nothing, for the driver: what a worker and a data worker say, and nothing of what they do.

Imported by each of their processes, of which there are many: no torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray

from distblock.messages import Arrival, DataReport, Departure, Item, Parcel, Passage, StageReport, WorkerReport
from distblock.runtime.handover import Ready, SnapshotReport, Told
from distblock.schedule.saving import CacheFiles

OUTPUT = b"activation"
"""What they hand out."""

NOWHERE = Passage(
    asked_s=0.0,
    fetched_s=0.0,
    decoded_s=0.0,
    started_s=0.0,
    finished_s=0.0,
    encoded_s=0.0,
    stored_s=0.0,
    wire_bytes=0,
)
"""A passage that took no time."""


class IdleWorker:
    """In the place of a `StageWorker` or a `DataWorker`.

    Args:
        index: the worker's; its only stage's, too.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._node = ray.util.get_node_ip_address()

    def ready(self) -> Ready:
        """Where it is."""
        return Ready(node=self._node, node_id=ray.get_runtime_context().get_node_id())

    def prepare(self, parcel: Parcel, turn: int) -> Iterator[Any]:  # noqa: ARG002
        """As of a data worker."""
        yield OUTPUT
        reports = tuple(
            DataReport(item=item, departures=(_departure(0),), node=self._node, passage=NOWHERE)
            for item in parcel.items
        )
        yield Told(reports, (None,))

    def hop(
        self,
        parcel: Parcel,
        payloads: list[Any],  # noqa: ARG002
        turn: int,  # noqa: ARG002
        source: None = None,  # noqa: ARG002
        offer: None = None,  # noqa: ARG002
    ) -> Iterator[Any]:
        """As of a worker; what enters stays where it is."""
        yield OUTPUT
        yield Told(tuple(self._worked(item) for item in parcel.items), (None,))

    def _worked(self, item: Item) -> WorkerReport:
        return WorkerReport(
            worker=self._index,
            item=item,
            stages=(self._report(item),),
            arrivals=(Arrival(edge=self._index, fetch_s=0.0, decode_s=0.0, exposed_s=0.0),),
            departures=(_departure(self._index + 1),),
            started_s=0.0,
            finished_s=0.0,
            idle_s=0.0,
            peak_memory_bytes=0,
            node=self._node,
            passage=NOWHERE,
        )

    def snapshot(self, turn: int) -> Iterator[Any]:  # noqa: ARG002
        """Of nothing."""
        yield OUTPUT
        yield SnapshotReport(seconds=0.0, caches=CacheFiles())

    def states(self, turn: int) -> dict[int, dict[str, Any]]:  # noqa: ARG002
        """No weights."""
        return {self._index: {}}

    def _report(self, item: Item) -> StageReport:
        return StageReport(
            stage=self._index,
            role="train",
            loss_sum=0.0,
            transport_cost_sum=0.0,
            num_correct=0,
            num_samples=item.num_samples,
            compute_s=0.0,
            lr=0.0,
        )


def _departure(edge: int) -> Departure:
    return Departure(edge=edge, payload_bytes=0, wire_bytes=0, encode_s=0.0, put_s=0.0)
