"""The course of a run: streams of microbatches, and which of them may be under way together.

A stream runs through consecutive stages in order. Where all stages train at once there is one, through all of them;
where they train one by one there is a stream for each stage in each lap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from distblock.messages import Item
from distblock.schedule.laps import Cell, Laps
from distblock.schedule.position import Position, Reached, TimeUp, rest

MakeStream = Callable[[Cell, TimeUp], Iterator[Item | None]]
"""A cell's stream, which asks whether time is up."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A stream that is under way.

    Attributes:
        cell: the stage and lap it trains; None: all stages.
        items: the stream; None in it: not now.
        time_up: what the stream asks.
        start: number of its first microbatch; above 0 where it goes on.
        rebuilds: it only stores again what a cell that is done has left.
    """

    cell: Cell | None
    items: Iterator[Item | None]
    time_up: TimeUp
    start: int = 0
    rebuilds: bool = False

    def reached(self, items: int) -> Reached:
        """How far it has come, so many of its microbatches having passed."""
        return Reached(items=items, first_yes=self.time_up.first_yes)


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

    def miss(self, cells: Sequence[Cell]) -> None:
        """What these cells have left, and others will read, is lost; told before the first stream begins."""
        ...

    @property
    def done(self) -> tuple[Cell, ...]:
        """Cells that are done."""
        ...

    @property
    def unread(self) -> tuple[Cell, ...]:
        """Cells that are done and whose leavings will be read."""
        ...

    def finish(self, lane: Lane) -> list[Cell]:
        """A stream has ended; the cells whose leavings nobody will read any more."""
        ...


class AllAtOnce:
    """One stream through all stages.

    Args:
        items: makes the stream, which asks whether time is up.
        is_up: whether it is.
        position: where to go on from.
    """

    peak_bytes = 0
    done: tuple[Cell, ...] = ()
    unread: tuple[Cell, ...] = ()

    def __init__(
        self,
        items: Callable[[TimeUp], Iterator[Item | None]],
        *,
        is_up: Callable[[], bool] = lambda: False,
        position: Position | None = None,
    ) -> None:
        reached = None if position is None else position.running[None]
        self._lane: Lane | None = _lane(None, items, is_up, reached)
        self.is_finished = False

    def begin(self) -> list[Lane]:
        """The stream, once."""
        lane, self._lane = self._lane, None
        return [] if lane is None else [lane]

    def miss(self, cells: Sequence[Cell]) -> None:
        """Nothing is left for others."""
        assert not cells

    def finish(self, lane: Lane) -> list[Cell]:  # noqa: ARG002
        """The run is over."""
        self.is_finished = True
        return []


class OneByOne:
    """A stream for each stage in each lap.

    Args:
        laps: which may begin.
        stream: a cell's stream.
        stored: what a cell stores again, where that is lost.
        is_up: whether time is up.
        position: where to go on from.
    """

    def __init__(
        self,
        laps: Laps,
        stream: MakeStream,
        *,
        stored: Callable[[Cell], Iterator[Item | None]],
        is_up: Callable[[], bool] = lambda: False,
        position: Position | None = None,
    ) -> None:
        self._laps = laps
        self._stream = stream
        self._stored = stored
        self._is_up = is_up
        self._position = position or Position()
        running = [cell for cell in self._position.running if cell is not None and cell not in self._position.done]
        self._resumed = laps.resume(done=self._position.done, running=running)
        self._lost: deque[Cell] = deque()
        self._is_rebuilding = False
        self._lent: set[Cell] = set()

    @property
    def is_finished(self) -> bool:
        """All cells are done."""
        return self._laps.is_finished

    @property
    def peak_bytes(self) -> int:
        """Most bytes that cells have left for later ones at once."""
        return self._laps.peak_bytes

    @property
    def done(self) -> tuple[Cell, ...]:
        """Cells that are done."""
        return self._laps.done

    @property
    def unread(self) -> tuple[Cell, ...]:
        """Cells that are done and whose leavings will be read."""
        return self._laps.unread

    def miss(self, cells: Sequence[Cell]) -> None:
        """What these cells have left is stored again, before anything else begins: each stage's outputs from those of
        the stage before, from the last that is still there onwards."""
        there = set(self.unread) - set(cells)
        for cell in sorted(cells):
            chain = [cell]
            while chain[0].stage > 0:
                before = Cell(lap=cell.lap, stage=chain[0].stage - 1)
                if before in there:
                    break
                chain.insert(0, before)
            self._lent |= set(chain) - set(self.unread)
            self._lost += chain
            there |= set(chain)

    def begin(self) -> list[Lane]:
        """The streams of cells that may begin."""
        if self._is_rebuilding:
            return []
        if self._lost:
            self._is_rebuilding = True
            cell = self._lost.popleft()
            return [Lane(cell=cell, items=self._stored(cell), time_up=TimeUp(lambda: False), rebuilds=True)]
        self._resumed, resumed = [], self._resumed
        return [self._begin_cell(cell) for cell in [*resumed, *self._laps.begin()]]

    def finish(self, lane: Lane) -> list[Cell]:
        """A cell is done."""
        assert lane.cell is not None
        if not lane.rebuilds:
            return self._laps.finish(lane.cell)
        self._is_rebuilding = False
        unread = [] if self._lost else list(self._lent)
        self._lent -= set(unread)
        return unread

    def _begin_cell(self, cell: Cell) -> Lane:
        def items(time_up: TimeUp) -> Iterator[Item | None]:
            return self._stream(cell, time_up)

        return _lane(cell, items, self._is_up, self._position.running.get(cell))


def _lane(
    cell: Cell | None,
    items: Callable[[TimeUp], Iterator[Item | None]],
    is_up: Callable[[], bool],
    reached: Reached | None,
) -> Lane:
    if reached is None:
        time_up = TimeUp(is_up)
        return Lane(cell=cell, items=items(time_up), time_up=time_up)
    time_up = TimeUp(is_up, first_yes=reached.first_yes, answered=True)
    return Lane(cell=cell, items=rest(items(time_up), reached, time_up), time_up=time_up, start=reached.items)
