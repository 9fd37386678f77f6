"""A stream under way on the cluster: the workers it passes, and the outputs that wait for the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ray import ObjectRef

from distblock.messages import Item, Parcel
from distblock.runtime.transports.outbox import Offer
from distblock.schedule import course
from distblock.schedule.credits import Credits
from distblock.schedule.dispatch import Dispatcher
from distblock.schedule.laps import Cell
from distblock.schedule.parcels import parcels


class Waiting(NamedTuple):
    """An output that the next place has not begun: a share for each replica, where each can be had beside the object
    store, and when it came."""

    payloads: tuple[ObjectRef, ...]
    offers: tuple[Offer | None, ...]
    since_s: float


class Lane:
    """A stream under way.

    Attributes:
        lane: the stream as the course sees it.
        workers: index of each worker it passes, in order.
        source: the worker whose cache its microbatches come from; None: they are data.
        waiting: outputs that wait, by the place that made them and the parcel's number.

    Args:
        lane, workers, source: the attributes.
        edges: what is in flight on each edge.
        size: bytes of a parcel on an edge.
        count: microbatches of the next parcel.
        drops: whether old training parcels are dropped.
        may_store: whether a file may be begun now.
    """

    def __init__(
        self,
        lane: course.Lane,
        *,
        workers: Sequence[int],
        source: int | None,
        edges: Sequence[Credits],
        size: Callable[[int, Parcel], int],
        count: Callable[[], int],
        drops: bool,
        may_store: Callable[[], bool],
    ) -> None:
        self.lane = lane
        self.workers = workers
        self.source = source
        self.waiting: dict[tuple[int, int], Waiting] = {}
        self._may_store = may_store
        self._stores = False
        stream = parcels(self._held_back(lane.items), count)
        self.dispatcher = Dispatcher(stream, edges=edges, size=size, drops=drops, start=lane.start)

    @property
    def cell(self) -> Cell | None:
        """The stage and lap it trains; None: all stages."""
        return self.lane.cell

    @property
    def has_ended(self) -> bool:
        """Whether the worker that it trains has been given all of it."""
        return self.dispatcher.is_drained(len(self.workers))

    @property
    def is_storing(self) -> bool:
        """Whether it has begun a file that is not yet with its worker as a whole."""
        return self.lane.rebuilds or (self._stores and not self.has_ended)

    def edge(self, place: int) -> int | None:
        """The worker that an edge leads to, by the place before it; None where samples come from a cache."""
        return None if self.source is not None else self.workers[place]

    def _held_back(self, items: Iterator[Item | None]) -> Iterator[Item | None]:
        for item in items:
            if item is not None and item.purpose == "store":
                while not self.is_storing and not self._may_store():
                    yield None
                self._stores = True
            yield item
