"""What an executor tells while it runs. Edges are named by the stage they enter; edge 0 leads from the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from distblock.messages import DataReport, Departure, Failure, Handling, Item, Line, Standing, WorkerReport


class Recorder(Protocol):
    """Listens to microbatches."""

    def begin(self) -> None:
        """The stages are ready, and the first microbatch is on its way."""
        ...

    def record(self, report: WorkerReport) -> None:
        """A worker is done with a microbatch."""
        ...

    def record_departure(self, departure: Departure, node: str, item: Item) -> None:
        """A microbatch of data is ready; ``node`` is the host it lies on."""
        ...


class Observer(Recorder, Protocol):
    """Listens to credits too."""

    def record_passage(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        """When a microbatch was where: at a worker or data worker, and here."""
        ...

    def record_backpressure(self, edge: int, seconds: float) -> None:
        """A sender stood idle for want of a credit."""
        ...

    def record_drop(self, edge: int) -> None:
        """A microbatch was dropped, since its receiver was too slow."""
        ...

    def record_driver(self, busy_s: float, num_microbatches: int) -> None:
        """The driver has worked for so long, since the end of the last call, which had so many microbatches, and waits
        for that of another."""
        ...

    def record_standing(self, standings: Sequence[Standing]) -> None:
        """What each worker is at; told a few times a second at most."""
        ...

    def set_in_flight(self, edge: int, count: int, num_bytes: int) -> None:
        """What is in flight on an edge now."""
        ...

    def set_lines(self, lines: Sequence[Line]) -> None:
        """What edges between two hosts lie on, of the workers that are about to start; those not named are no such."""
        ...

    def set_memcpy(self, bytes_per_s: float | None) -> None:
        """What copying in memory makes on the slowest host of the workers; None: not measured."""
        ...

    def record_failure(self, failure: Failure) -> None:
        """A failure has been survived."""
        ...


class Silent:
    """An `Observer` that nobody looks at; others build on it."""

    def begin(self) -> None:
        """Nothing is kept."""

    def record(self, report: WorkerReport) -> None:
        """Nothing is kept."""

    def record_departure(self, departure: Departure, node: str, item: Item) -> None:
        """Nothing is kept."""

    def record_passage(self, report: WorkerReport | DataReport, handling: Handling) -> None:
        """Nothing is kept."""

    def record_backpressure(self, edge: int, seconds: float) -> None:
        """Nothing is kept."""

    def record_drop(self, edge: int) -> None:
        """Nothing is kept."""

    def record_driver(self, busy_s: float, num_microbatches: int) -> None:
        """Nothing is kept."""

    def record_standing(self, standings: Sequence[Standing]) -> None:
        """Nothing is kept."""

    def set_in_flight(self, edge: int, count: int, num_bytes: int) -> None:
        """Nothing is kept."""

    def set_lines(self, lines: Sequence[Line]) -> None:
        """Nothing is kept."""

    def set_memcpy(self, bytes_per_s: float | None) -> None:
        """Nothing is kept."""

    def record_failure(self, failure: Failure) -> None:
        """Nothing is kept."""
