"""The course of a run: streams of microbatches, and which of them may be under way together.

A stream runs through consecutive stages in order. Where all stages train at once there is one, through all of them;
where they train one by one there is a stream for each stage in each lap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from distblock.messages import Item
from distblock.schedule.laps import Cell, Laps


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A stream that is under way.

    Attributes:
        cell: the stage and lap it trains; None: all stages.
        items: the stream; None in it: not now.
    """

    cell: Cell | None
    items: Iterator[Item | None]


class Course(Protocol):
    """What an executor carries out."""

    @property
    def is_finished(self) -> bool:
        """All streams have ended."""
        ...

    @property
    def peak_bytes(self) -> int:
        """Most bytes that cells have left for later ones at once."""
        ...

    def begin(self) -> list[Lane]:
        """Streams that may begin now."""
        ...

    def finish(self, lane: Lane) -> list[Cell]:
        """A stream has ended; the cells whose leavings nobody will read any more."""
        ...


class AllAtOnce:
    """One stream through all stages.

    Args:
        items: the stream.
    """

    peak_bytes = 0

    def __init__(self, items: Iterator[Item | None]) -> None:
        self._items: Iterator[Item | None] | None = items
        self.is_finished = False

    def begin(self) -> list[Lane]:
        """The stream, once."""
        if self._items is None:
            return []
        items, self._items = self._items, None
        return [Lane(cell=None, items=items)]

    def finish(self, lane: Lane) -> list[Cell]:  # noqa: ARG002
        """The run is over."""
        self.is_finished = True
        return []


class OneByOne:
    """A stream for each stage in each lap.

    Args:
        laps: which may begin.
        stream: a cell's stream.
    """

    def __init__(self, laps: Laps, stream: Callable[[Cell], Iterator[Item | None]]) -> None:
        self._laps = laps
        self._stream = stream

    @property
    def is_finished(self) -> bool:
        """All cells are done."""
        return self._laps.is_finished

    @property
    def peak_bytes(self) -> int:
        """Most bytes that cells have left for later ones at once."""
        return self._laps.peak_bytes

    def begin(self) -> list[Lane]:
        """The streams of cells that may begin."""
        return [Lane(cell=cell, items=self._stream(cell)) for cell in self._laps.begin()]

    def finish(self, lane: Lane) -> list[Cell]:
        """A cell is done."""
        assert lane.cell is not None
        return self._laps.finish(lane.cell)
