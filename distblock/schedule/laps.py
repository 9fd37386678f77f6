"""Stages that train one by one, in laps: which may train now.

The work is a grid of cells: stage k in lap l. A cell asks for its own weights after lap l - 1, and for the outputs of
the stage before it, as it stands after *its* lap l. That allows whole diagonals at once:

    phase        0      1      2      3      4      5
    stage 0    lap 0  lap 1  lap 2  lap 3
    stage 1           lap 0  lap 1  lap 2  lap 3
    stage 2                  lap 0  lap 1  lap 2  lap 3

R laps of K stages take R + K - 1 phases instead of R * K, and every cell computes what it would compute alone. What
a cell leaves for later ones (its outputs, or a frozen copy of its weights) takes room; it is freed after the last cell
that reads it, and a cell that would take more room than there is waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distblock.messages import Inputs


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Cell:
    """One stage in one lap."""

    lap: int
    stage: int


@dataclass(frozen=True, kw_only=True)
class Room:
    """What cells leave behind, and how much of it there may be.

    Attributes:
        inputs: what is left: outputs, each read by the next stage alone, or copies of weights, read by all later ones.
        stage_bytes: bytes that each stage leaves a lap; 0 where nobody reads it.
        limit_bytes: the most at once.
    """

    inputs: Inputs
    stage_bytes: tuple[int, ...]
    limit_bytes: int

    @property
    def least_bytes(self) -> int:
        """What one cell at a time takes: the outputs it reads and those it leaves. Copies are never needed then."""
        if self.inputs == "frozen":
            return 0
        return max(a + b for a, b in zip((0, *self.stage_bytes), self.stage_bytes, strict=False))


class Laps:
    """The grid as a state machine.

    Args:
        num_stages: K.
        num_laps: R.
        at_once: all cells that may (the wavefront), or one at a time, lap by lap.
        room: for what cells leave behind.
    """

    def __init__(self, num_stages: int, num_laps: int, *, at_once: bool, room: Room) -> None:
        self._num_stages = num_stages
        self._num_laps = num_laps
        self._at_once = at_once
        self._room = room
        self._waiting = [Cell(lap=lap, stage=stage) for lap in range(num_laps) for stage in range(num_stages)]
        self._running: set[Cell] = set()
        self._done: set[Cell] = set()
        self._held: dict[Cell, int] = {}
        self.peak_bytes = 0

    @property
    def is_finished(self) -> bool:
        """Nothing waits or runs."""
        return not self._waiting and not self._running

    @property
    def done(self) -> tuple[Cell, ...]:
        """Cells that are done, in the order of laps."""
        return tuple(sorted(self._done))

    @property
    def unread(self) -> tuple[Cell, ...]:
        """Cells that are done and that others will read, or read now."""
        return tuple(sorted(self._done.intersection(self._held)))

    def resume(self, *, done: Sequence[Cell], running: Sequence[Cell]) -> list[Cell]:
        """Go on from where another had come to; the cells that run."""
        self._done.update(done)
        self._running.update(running)
        self._waiting = [cell for cell in self._waiting if cell not in self._done | self._running]
        for cell in sorted(self._done | self._running):
            self._hold(cell)
        return sorted(self._running)

    def begin(self) -> list[Cell]:
        """All cells that may begin now, in the order of laps."""
        begun = []
        for cell in list(self._waiting):
            if (self._at_once or not self._running) and self._may_begin(cell):
                self._waiting.remove(cell)
                self._running.add(cell)
                self._hold(cell)
                begun.append(cell)
        return begun

    def finish(self, cell: Cell) -> list[Cell]:
        """A cell is done; the cells that nobody will read any more."""
        self._running.remove(cell)
        self._done.add(cell)
        unread = [held for held in self._held if not self._is_read(held)]
        for held in unread:
            del self._held[held]
        return unread

    def _may_begin(self, cell: Cell) -> bool:
        before = [Cell(lap=cell.lap, stage=cell.stage - 1)] if cell.stage else []
        own = [Cell(lap=cell.lap - 1, stage=cell.stage)] if cell.lap else []
        if not self._done.issuperset([*before, *own]):
            return False
        # The earliest cell always passes, and the others leave room for it: so nobody waits for ever.
        if min([*self._waiting, *self._running]) == cell:
            return True
        leaving = self._leaves(cell)
        held_bytes = sum(self._held.values()) + sum(leaving.values())
        return not leaving or held_bytes + self._room.least_bytes <= self._room.limit_bytes

    def _hold(self, cell: Cell) -> None:
        self._held |= self._leaves(cell)
        self.peak_bytes = max(self.peak_bytes, sum(self._held.values()))

    def _leaves(self, cell: Cell) -> dict[Cell, int]:
        """What begins to take room with a cell: its own outputs, or the copy of the weights that it goes on from."""
        if self._room.inputs == "cache":
            left = cell
        else:
            left = Cell(lap=cell.lap - 1, stage=cell.stage)
        if left.lap < 0 or not self._is_read(left):
            return {}
        return {left: self._room.stage_bytes[left.stage]}

    def _is_read(self, left: Cell) -> bool:
        """Whether a cell to come, or running, reads what this one leaves."""
        last = left.stage + 1 if self._room.inputs == "cache" else self._num_stages - 1
        readers = [Cell(lap=left.lap, stage=stage) for stage in range(left.stage + 1, self._num_stages)]
        return any(reader not in self._done for reader in readers if reader.stage <= last)


def phases(num_stages: int, num_laps: int, *, at_once: bool) -> list[list[Cell]]:
    """Which cells run together, if all take equally long: the drawing above.

    >>> [[(cell.stage, cell.lap) for cell in phase] for phase in phases(2, 2, at_once=True)]
    [[(0, 0)], [(1, 0), (0, 1)], [(1, 1)]]
    """
    room = Room(inputs="frozen", stage_bytes=(0,) * num_stages, limit_bytes=0)
    laps = Laps(num_stages, num_laps, at_once=at_once, room=room)
    drawn = []
    while not laps.is_finished:
        drawn.append(laps.begin())
        for cell in drawn[-1]:
            laps.finish(cell)
    return drawn


def choose_inputs(
    wish: Literal["auto", "cache", "frozen"],
    *,
    is_cacheable: bool,
    output_bytes: Sequence[int],
    weight_bytes: Sequence[int],
    limit_bytes: int,
) -> Room:
    """Cache or frozen weights, and what they take.

    Args:
        wish: the setting.
        is_cacheable: whether a cache can stand for the outputs: it cannot where images differ from epoch to epoch.
        output_bytes: bytes of each stage's outputs over the data; 0 for the last one's, which nobody reads.
        weight_bytes: bytes of each stage's weights.
        limit_bytes: the most at once.

    Raises:
        ValueError: a cache was asked for and does not fit.
    """
    cache = Room(inputs="cache", stage_bytes=tuple(output_bytes), limit_bytes=limit_bytes)
    fits = cache.least_bytes <= limit_bytes
    if wish == "cache" and not fits:
        raise ValueError(
            f"regime.cache_bytes: expected at least {cache.least_bytes} for the outputs that one stage reads and"
            f" leaves, got {limit_bytes}; raise it or set --regime.inputs frozen"
        )
    if wish == "cache" or (wish == "auto" and fits and is_cacheable):
        return cache
    return Room(inputs="frozen", stage_bytes=tuple(weight_bytes), limit_bytes=limit_bytes)
